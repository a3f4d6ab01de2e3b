//! Scenes in the folder layout of PASCAL VOC.

use std::fmt::Write;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use image::ExtendedColorType;
use image::codecs::jpeg::JpegEncoder;
use pirl_core::{check, file};

use crate::SceneError;
use crate::composition::Composition;

const JPEG_QUALITY: u8 = 92;

/// An object of a scene.
pub(crate) struct Placed {
    pub(crate) label: u32,
    /// Left, top, and one beyond right and bottom.
    pub(crate) bounds: [usize; 4],
    pub(crate) occluded: bool,
    pub(crate) difficult: bool,
}

/// The folder that scenes go to.
pub(crate) struct Folder<'a> {
    path: PathBuf,
    set: PathBuf,
    class_names: &'a [String],
}

impl<'a> Folder<'a> {
    /// Makes the folders; the image set must not be there yet, and the classes must be those of the
    /// other image sets.
    pub(crate) fn create(
        path: &Path,
        split: &str,
        class_names: &'a [String],
    ) -> Result<Self, SceneError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        check(
            "split",
            format!("{split:?}"),
            !split.is_empty() && split.chars().all(plain),
            "must name files: use letters, digits, _ and -",
        )?;
        let set = path.join("ImageSets/Main").join(format!("{split}.txt"));
        if set.exists() {
            return Err(SceneError::Exists { path: set });
        }
        for folder in ["JPEGImages", "Annotations", "ImageSets/Main"] {
            let folder = path.join(folder);
            fs::create_dir_all(&folder).map_err(SceneError::io("make", folder))?;
        }
        let names = path.join("class_names.txt");
        let text: String = class_names.iter().map(|name| format!("{name}\n")).collect();
        match fs::read_to_string(&names) {
            Ok(found) if found == text => {}
            Ok(_) => {
                return Err(SceneError::OtherClasses { path: names });
            }
            Err(_) => write(&names, text.as_bytes())?,
        }
        Ok(Self {
            path: path.to_owned(),
            set,
            class_names,
        })
    }

    /// Writes one scene.
    pub(crate) fn write(
        &self,
        name: &str,
        scene: Composition,
        placed: &[Placed],
    ) -> Result<(), SceneError> {
        let image = scene.into_image();
        let (width, height) = (image.width, image.height);
        let path = self.path.join("JPEGImages").join(format!("{name}.jpg"));
        let mut jpeg = Vec::new();
        JpegEncoder::new_with_quality(&mut jpeg, JPEG_QUALITY)
            .encode(
                &image.pixels,
                width as u32,
                height as u32,
                ExtendedColorType::Rgb8,
            )
            .map_err(io::Error::other)
            .map_err(SceneError::io("encode", &path))?;
        fs::write(&path, jpeg).map_err(SceneError::io("write", path))?;
        let path = self.path.join("Annotations").join(format!("{name}.xml"));
        let text = self.annotation(name, (width, height), placed);
        fs::write(&path, text).map_err(SceneError::io("write", path))
    }

    /// Writes the image set, which says that the scenes are whole.
    pub(crate) fn finish(&self, names: &[String]) -> Result<(), SceneError> {
        let text: String = names.iter().map(|name| format!("{name}\n")).collect();
        write(&self.set, text.as_bytes())
    }

    /// VOC counts pixels from 1, and both ends of a box are in it.
    fn annotation(&self, name: &str, (width, height): (usize, usize), placed: &[Placed]) -> String {
        let mut xml = format!(
            "<annotation>\n\
             \t<folder>scenes</folder>\n\
             \t<filename>{name}.jpg</filename>\n\
             \t<size>\n\t\t<width>{width}</width>\n\t\t<height>{height}</height>\n\
             \t\t<depth>3</depth>\n\t</size>\n\
             \t<segmented>0</segmented>\n"
        );
        for object in placed {
            let class = self.class_names.get(object.label as usize);
            let [left, top, right, bottom] = object.bounds;
            // Writing to a string cannot fail.
            let _ = write!(
                xml,
                "\t<object>\n\t\t<name>{}</name>\n\t\t<pose>Unspecified</pose>\n\
                 \t\t<truncated>0</truncated>\n\t\t<occluded>{}</occluded>\n\
                 \t\t<difficult>{}</difficult>\n\
                 \t\t<bndbox>\n\t\t\t<xmin>{}</xmin>\n\t\t\t<ymin>{}</ymin>\n\
                 \t\t\t<xmax>{right}</xmax>\n\t\t\t<ymax>{bottom}</ymax>\n\t\t</bndbox>\n\
                 \t</object>\n",
                escaped(class.map_or("", String::as_str)),
                u8::from(object.occluded),
                u8::from(object.difficult),
                left + 1,
                top + 1,
            );
        }
        xml + "</annotation>\n"
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// Writes a file, whole or not at all.
fn write(path: &Path, bytes: &[u8]) -> Result<(), SceneError> {
    file::write(path, bytes).map_err(SceneError::io("write", path))
}
