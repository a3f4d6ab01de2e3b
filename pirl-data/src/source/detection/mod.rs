//! Data sets whose images have their objects annotated, in the formats that tools write.

mod coco;
mod cvat;
mod layout;
mod voc;
mod voc_xml;
mod yolo;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::files::read_image_file;
use super::{RawSample, Source, stamp_file};
use crate::{DataError, Objects, Skipped};

/// A detection data set: images, and the objects annotated in each.
///
/// Boxes become zero-based pixels. An object whose box or name cannot be read loses its image with it,
/// since its pixels would count as background; it is listed in [`Source::skipped`], and so are images
/// and annotations that are missing. Whether boxes lie in their image is looked at when packing, when
/// the image is decoded.
#[derive(Clone, Debug)]
pub struct Annotated {
    describe: String,
    images: Vec<AnnotatedImage>,
    class_names: Vec<String>,
    skipped: Vec<Skipped>,
    notes: Vec<Skipped>,
    passed_over: BTreeMap<String, usize>,
}

#[derive(Clone, Debug)]
struct AnnotatedImage {
    path: PathBuf,
    objects: Objects,
    /// Width and height of the image that the boxes are of, if the annotation says so.
    size: Option<(usize, usize)>,
    /// Whether boxes are fractions of width and height.
    fractions: bool,
}

impl Annotated {
    /// PASCAL VOC, and other data sets of one XML file an image (LabelImg and many more): the image set
    /// `split` of `folders`, put together in the order given and each in the order of its image set, as
    /// VOC 2007 and 2012 are used together.
    ///
    /// Images are looked for in `JPEGImages` or `images` and annotations in `Annotations` or `annots`, in
    /// sub-folders as well, or all of them beside each other. `split` is `all` for every annotation, the
    /// path of a list, or the name of `ImageSets/Main/NAME.txt`. A line is the name of an image, with or
    /// without folder and ending; behind it may stand `1`, `0`, or `-1`, which leaves it out, as in the
    /// sets of VOC's classes.
    ///
    /// 1 is taken from `xmin` and `ymin`, which the files count from 1 with both ends included, as
    /// detectron2 does. Class names are those of `class_names.txt`, one a line, when the first folder has
    /// it, and objects of other classes are left out; otherwise VOC's own 20 in alphabetical order when
    /// the annotations use no other; otherwise all names in the annotations, of this image set or
    /// another, in sorted order. So the sets of one data set agree. A `difficult` that is no number counts
    /// as not difficult.
    ///
    /// # Errors
    /// [`DataError::Io`] when a folder or an image set cannot be read; [`DataError::Empty`] when an image
    /// set is empty; [`DataError::Nothing`] when nothing that it names can be read, or no object is
    /// annotated; [`DataError::Format`] when `class_names.txt` has a name twice.
    pub fn voc(folders: &[impl AsRef<Path>], split: &str) -> Result<Self, DataError> {
        let folders: Vec<PathBuf> = folders.iter().map(|f| f.as_ref().to_owned()).collect();
        voc::open(&folders, split)?.checked()
    }

    /// A JSON file in the format of COCO's instances, with its images in `images`, or without it in one
    /// of the places where they usually are: beside the file, or in a folder beside its folder that is
    /// called `images` or as the set is (`instances_val2017.json`: `val2017`).
    ///
    /// Labels are the places of the categories in order of their ids, which may have gaps. What is a crowd
    /// (`iscrowd`) counts as difficult. Images without annotations have no objects.
    ///
    /// # Errors
    /// [`DataError::Io`]; [`DataError::Format`] when the file is no such JSON; [`DataError::Nothing`] when
    /// no image is there, or no object is annotated.
    pub fn coco(file: &Path, images: Option<&Path>) -> Result<Self, DataError> {
        coco::open(file, images)?.checked()
    }

    /// A folder as YOLO's programs have it: a text file for each image, with lines of class, centre, width
    /// and height, as fractions of the upright image, or class and the corners of a polygon.
    ///
    /// Images lie in `images/SPLIT`, `SPLIT/images`, `images` or the folder itself, text files in `labels`
    /// in place of `images`, or beside them. Class names come from `data.yaml` (or another `.yaml` with
    /// `names`), `classes.txt`, `obj.names` or `class_names.txt`. Images without a text file have no
    /// objects.
    ///
    /// # Errors
    /// [`DataError::Io`]; [`DataError::Empty`] without images; [`DataError::Format`] when there are no
    /// class names, or they cannot be read; [`DataError::Nothing`] when no object is annotated.
    pub fn yolo(folder: &Path, split: Option<&str>) -> Result<Self, DataError> {
        yolo::open(folder, split)?.checked()
    }

    /// An XML file of CVAT, `CVAT for images 1.1`, with its images in `images`, or without it in a folder
    /// `images` beside the file, or beside the file. Of polygons and ellipses the box around them is taken;
    /// lines, points and masks are no objects.
    ///
    /// # Errors
    /// As [`Annotated::coco`].
    pub fn cvat(file: &Path, images: Option<&Path>) -> Result<Self, DataError> {
        cvat::open(file, images)?.checked()
    }

    /// # Errors
    /// [`DataError::Nothing`] when no object is annotated.
    fn checked(mut self) -> Result<Self, DataError> {
        if self.images.iter().all(|image| image.objects.is_empty()) {
            if self.skipped.is_empty() {
                self.skipped.push(Skipped {
                    name: format!("{} images", self.images.len()),
                    reason: "no object is annotated in them".to_owned(),
                });
            }
            return Err(DataError::nothing(self.describe, &self.skipped));
        }
        Ok(self)
    }
}

impl Source for Annotated {
    fn len(&self) -> usize {
        self.images.len()
    }

    fn class_names(&self) -> &[String] {
        &self.class_names
    }

    fn read(&self, index: usize) -> Result<RawSample<'_>, DataError> {
        let image = self.images.get(index).ok_or(DataError::Index {
            index,
            len: self.images.len(),
        })?;
        let name = image.path.display().to_string();
        let sample = read_image_file(&image.path, name, None)?;
        let mut objects = image.objects.clone();
        if image.fractions {
            let size = crate::decode::size(&sample.bytes, sample.encoding);
            let (width, height) = size.map_err(|reason| DataError::Decode {
                name: sample.name.clone(),
                reason,
            })?;
            for [x0, y0, x1, y1] in &mut objects.boxes {
                (*x0, *x1) = (*x0 * width as f32, *x1 * width as f32);
                (*y0, *y1) = (*y0 * height as f32, *y1 * height as f32);
            }
        }
        Ok(RawSample {
            objects: Some(objects),
            ..sample
        })
    }

    fn describe(&self) -> String {
        self.describe.clone()
    }

    fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }

    fn notes(&self) -> &[Skipped] {
        &self.notes
    }

    fn passed_over(&self) -> BTreeMap<String, usize> {
        self.passed_over.clone()
    }

    fn annotated_size(&self, index: usize) -> Option<(usize, usize)> {
        self.images.get(index)?.size
    }

    fn stamp(&self, index: usize) -> u128 {
        match self.images.get(index) {
            Some(image) => stamp_file(&image.path, None, Some(&image.objects)),
            None => 0,
        }
    }
}

/// The number of a class among the names.
fn label(class_names: &[String], name: &str) -> Option<u32> {
    let label = class_names.iter().position(|known| known == name)?;
    u32::try_from(label).ok()
}

/// The box around points.
fn around(points: impl Iterator<Item = [f32; 2]>) -> [f32; 4] {
    let start = [
        f32::INFINITY,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NEG_INFINITY,
    ];
    points.fold(start, |[x0, y0, x1, y1], [x, y]| {
        [x0.min(x), y0.min(y), x1.max(x), y1.max(y)]
    })
}
