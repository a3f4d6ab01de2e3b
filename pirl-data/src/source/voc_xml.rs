//! One annotation of VOC: an XML file with an `object` for each box.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;

use roxmltree::{Document, Node};

use crate::DataError;

/// No annotation of a picture comes near this; a larger file is not read.
const MAX_BYTES: u64 = 16 << 20;

/// An object as the file has it, but for its box, which is zero-based.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Object {
    pub(super) name: String,
    pub(super) bounds: [f32; 4],
    pub(super) difficult: bool,
}

/// The objects of the annotation at `path`, in order; of a broken one, what is wrong with it.
///
/// # Errors
/// [`DataError::Io`]; [`DataError::Format`] when it is not XML or not an annotation.
pub(super) fn objects(path: &Path) -> Result<Vec<Result<Object, String>>, DataError> {
    let text = read(path)?;
    parse(&text).map_err(|reason| bad(path, reason))
}

/// The class names that the annotation at `path` uses.
///
/// # Errors
/// As [`objects`].
pub(super) fn class_names(path: &Path) -> Result<BTreeSet<String>, DataError> {
    let found = objects(path)?;
    Ok(found
        .into_iter()
        .filter_map(|object| object.ok().map(|object| object.name))
        .collect())
}

/// As [`objects`], of the text of a file.
pub(super) fn parse(text: &str) -> Result<Vec<Result<Object, String>>, String> {
    let document = Document::parse(text).map_err(|error| error.to_string())?;
    let root = document.root_element();
    if !root.has_tag_name("annotation") {
        return Err(format!(
            "its root is <{}>, expected <annotation>",
            root.tag_name().name()
        ));
    }
    let objects = root.children().filter(|child| child.has_tag_name("object"));
    Ok(objects.map(object).collect())
}

fn object(node: Node<'_, '_>) -> Result<Object, String> {
    let name = text(node, "name")?;
    if name.is_empty() {
        return Err("its name is empty".to_owned());
    }
    let difficult = match text(node, "difficult") {
        Err(_) | Ok("0") => false,
        Ok("1") => true,
        Ok(other) => return Err(format!("{name}: difficult is {other:?}, expected 0 or 1")),
    };
    let bounds = child(node, "bndbox")?;
    let side = |side: &str| -> Result<f32, String> {
        let value = text(bounds, side)?;
        match value.parse::<f32>() {
            Ok(number) if number.is_finite() => Ok(number),
            _ => Err(format!("{name}: {side} is {value:?}, not a number")),
        }
    };
    Ok(Object {
        bounds: [
            side("xmin")? - 1.0,
            side("ymin")? - 1.0,
            side("xmax")?,
            side("ymax")?,
        ],
        name: name.to_owned(),
        difficult,
    })
}

fn child<'a, 'input>(node: Node<'a, 'input>, name: &str) -> Result<Node<'a, 'input>, String> {
    node.children()
        .find(|child| child.has_tag_name(name))
        .ok_or_else(|| format!("it has no <{name}>"))
}

fn text<'a>(node: Node<'a, '_>, name: &str) -> Result<&'a str, String> {
    Ok(child(node, name)?.text().unwrap_or_default().trim())
}

fn read(path: &Path) -> Result<String, DataError> {
    let file = std::fs::File::open(path).map_err(DataError::io("read", path))?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(DataError::io("read", path))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(bad(path, format!("it is larger than {MAX_BYTES} bytes")));
    }
    String::from_utf8(bytes).map_err(|_| bad(path, "it is not UTF-8 text".to_owned()))
}

fn bad(path: &Path, reason: String) -> DataError {
    DataError::Format {
        path: path.to_owned(),
        format: "VOC annotation",
        reason,
    }
}
