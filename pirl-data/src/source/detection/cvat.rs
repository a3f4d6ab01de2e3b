//! The XML of `CVAT for images 1.1`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use roxmltree::Node;

use super::{Annotated, AnnotatedImage, around, label, layout, voc_xml};
use crate::source::text;
use crate::{DataError, Objects, Skipped};

const FORMAT: &str = "CVAT annotation";
const MAX_BYTES: u64 = 1 << 30;

pub(super) fn open(file: &Path, images: Option<&Path>) -> Result<Annotated, DataError> {
    let bad = |reason: String| DataError::Format {
        path: file.to_owned(),
        format: FORMAT,
        reason,
    };
    let bytes = text::read_bytes(file, MAX_BYTES, FORMAT)?;
    let text = text::decode_xml(&bytes).map_err(bad)?;
    let document = voc_xml::document(&text).map_err(bad)?;
    let root = document.root_element();
    if !root.has_tag_name("annotations") {
        let found = root.tag_name().name();
        return Err(bad(format!(
            "its root is <{found}>, expected <annotations>"
        )));
    }
    if root.children().any(|child| child.has_tag_name("track")) {
        return Err(bad(
            "it has <track>, of `CVAT for video`; export the task as `CVAT for images 1.1`"
                .to_owned(),
        ));
    }
    let listed: Vec<Node> = root
        .children()
        .filter(|child| child.has_tag_name("image"))
        .collect();
    let mut source = Annotated {
        describe: format!("CVAT file {}", file.display()),
        images: Vec::new(),
        class_names: class_names(root),
        skipped: Vec::new(),
        notes: Vec::new(),
        passed_over: BTreeMap::new(),
    };
    let folder = file.parent().filter(|path| !path.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let some_name = listed.first().and_then(|image| image.attribute("name"));
    let usual = [folder.join("images"), folder.to_owned()];
    let (tree, index) = layout::images(images, &usual, some_name)?;
    source.skipped.extend(tree.skipped);
    for image in listed {
        let name = image.attribute("name").unwrap_or_default();
        let mut left_out = |reason: String| {
            source.skipped.push(Skipped {
                name: name.to_owned(),
                reason,
            });
        };
        let objects = match objects(image, &source.class_names, &mut source.notes) {
            Ok(objects) => objects,
            Err(reason) => {
                left_out(format!(
                    "its image is left out, since this cannot be read: {reason}"
                ));
                continue;
            }
        };
        let Some(path) = index.find(name) else {
            left_out("there is no such image".to_owned());
            continue;
        };
        let side = |name| image.attribute(name).and_then(|side| side.parse().ok());
        source.images.push(AnnotatedImage {
            path: path.to_owned(),
            objects,
            size: side("width").zip(side("height")),
            fractions: false,
        });
    }
    Ok(source)
}

/// The labels of the task in its order, or else those of the shapes, sorted.
fn class_names(root: Node<'_, '_>) -> Vec<String> {
    let mut names = Vec::new();
    let in_meta = root.descendants().filter(|node| {
        node.has_tag_name("name")
            && node
                .parent()
                .is_some_and(|parent| parent.has_tag_name("label"))
    });
    for name in in_meta.filter_map(|node| node.text()) {
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    if names.is_empty() {
        let of_shapes: BTreeSet<&str> = root
            .descendants()
            .filter_map(|node| node.attribute("label"))
            .collect();
        names.extend(of_shapes.into_iter().map(str::to_owned));
    }
    names
}

fn objects(
    image: Node<'_, '_>,
    class_names: &[String],
    notes: &mut Vec<Skipped>,
) -> Result<Objects, String> {
    let mut objects = Objects::default();
    for (number, shape) in image.children().filter(Node::is_element).enumerate() {
        let number_of = |name: &str| -> Result<f32, String> {
            let text = shape
                .attribute(name)
                .ok_or_else(|| format!("it has no {name}"))?;
            match text.trim().parse::<f32>() {
                Ok(value) if value.is_finite() => Ok(value),
                _ => Err(format!("{name} is {text:?}, not a number")),
            }
        };
        let kind = shape.tag_name().name();
        let bounds = match kind {
            "box" => ["xtl", "ytl", "xbr", "ybr"]
                .map(number_of)
                .into_iter()
                .collect::<Result<Vec<_>, _>>()
                .map(|sides| [sides[0], sides[1], sides[2], sides[3]]),
            "ellipse" => ["cx", "cy", "rx", "ry"]
                .map(number_of)
                .into_iter()
                .collect::<Result<Vec<_>, _>>()
                .map(|e| [e[0] - e[2], e[1] - e[3], e[0] + e[2], e[1] + e[3]]),
            "polygon" => corners(shape.attribute("points").unwrap_or_default()),
            _ => {
                notes.push(Skipped {
                    name: image.attribute("name").unwrap_or_default().to_owned(),
                    reason: format!("its <{kind}> is no object with a box"),
                });
                continue;
            }
        };
        let failed = |reason: String| format!("<{kind}> {number}: {reason}");
        let bounds = bounds.map_err(failed)?;
        let name = shape.attribute("label").unwrap_or_default();
        let label = label(class_names, name);
        let label = label.ok_or_else(|| failed(format!("its label {name:?} is unknown")))?;
        objects.push(bounds, label, false);
    }
    Ok(objects)
}

/// The box around `x,y;x,y;...`.
fn corners(points: &str) -> Result<[f32; 4], String> {
    let corner = |pair: &str| -> Option<[f32; 2]> {
        let (x, y) = pair.split_once(',')?;
        let pair = [x.trim().parse().ok()?, y.trim().parse().ok()?];
        pair.iter()
            .all(|side: &f32| side.is_finite())
            .then_some(pair)
    };
    let corners: Option<Vec<[f32; 2]>> = points.split(';').map(corner).collect();
    match corners {
        Some(corners) if corners.len() > 2 => Ok(around(corners.into_iter())),
        _ => Err(format!(
            "its points are {points:?}, expected three pairs or more"
        )),
    }
}
