//! One annotation of VOC: an XML file with an `object` for each box.

use std::path::Path;

use roxmltree::{Document, Node, ParsingOptions};

use crate::DataError;
use crate::source::text;

/// No annotation of a picture comes near this; a larger file is not read.
const MAX_BYTES: u64 = 64 << 20;
const FORMAT: &str = "VOC annotation";

/// What a file says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Annotation {
    /// The name of its image, if it has one.
    pub(super) file: Option<String>,
    /// Width and height of its image, if it says so.
    pub(super) size: Option<(usize, usize)>,
    pub(super) objects: Vec<Object>,
    /// What was read otherwise than it stands.
    pub(super) notes: Vec<String>,
}

/// An object as the file has it, but for its box, which is zero-based.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Object {
    pub(super) name: String,
    pub(super) bounds: [f32; 4],
    pub(super) difficult: bool,
}

/// The annotation at `path`.
///
/// # Errors
/// [`DataError::Io`]; [`DataError::Format`] when it is not XML, not an annotation, or an object in it
/// cannot be read.
pub(super) fn read(path: &Path) -> Result<Annotation, DataError> {
    let bytes = text::read_bytes(path, MAX_BYTES, FORMAT)?;
    parse(&bytes).map_err(|reason| DataError::Format {
        path: path.to_owned(),
        format: FORMAT,
        reason,
    })
}

/// Parses XML of any encoding that it declares, with a DOCTYPE or without.
///
/// # Errors
/// What is wrong with it, and where.
pub(super) fn document(text: &str) -> Result<Document<'_>, String> {
    if text.contains("<!ENTITY") {
        return Err("it declares entities, which annotations do not need".to_owned());
    }
    let options = ParsingOptions {
        allow_dtd: true,
        ..ParsingOptions::default()
    };
    Document::parse_with_options(text, options).map_err(|error| error.to_string())
}

fn parse(bytes: &[u8]) -> Result<Annotation, String> {
    let text = text::decode_xml(bytes)?;
    let document = document(text.trim_matches(['\0', ' ', '\n', '\r', '\t']))?;
    let root = document.root_element();
    if !root.has_tag_name("annotation") {
        return Err(format!(
            "its root is <{}>, expected <annotation>",
            root.tag_name().name()
        ));
    }
    let mut annotation = Annotation {
        file: child_text(root, "filename")
            .ok()
            .filter(|name| !name.is_empty())
            .map(str::to_owned),
        size: child(root, "size").ok().and_then(size),
        ..Annotation::default()
    };
    let objects = root.children().filter(|child| child.has_tag_name("object"));
    for (number, node) in objects.enumerate() {
        let object = object(node, &mut annotation.notes);
        annotation
            .objects
            .push(object.map_err(|reason| format!("object {number}: {reason}"))?);
    }
    Ok(annotation)
}

fn size(node: Node<'_, '_>) -> Option<(usize, usize)> {
    let side = |name| {
        let side: f64 = child_text(node, name).ok()?.parse().ok()?;
        (side >= 1.0 && side <= f64::from(u32::MAX)).then_some(side as usize)
    };
    Some((side("width")?, side("height")?))
}

fn object(node: Node<'_, '_>, notes: &mut Vec<String>) -> Result<Object, String> {
    let name = child_text(node, "name")?;
    if name.is_empty() {
        return Err("its name is empty".to_owned());
    }
    let difficult = match child_text(node, "difficult") {
        Err(_) => false,
        Ok(text) => match text.parse::<f64>() {
            Ok(number) => number != 0.0,
            Err(_) => {
                notes.push(format!("difficult is {text:?}, no number, and read as 0"));
                false
            }
        },
    };
    let bounds = child(node, "bndbox")?;
    let side = |side: &str| -> Result<f32, String> {
        let value = child_text(bounds, side)?;
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

fn child_text<'a>(node: Node<'a, '_>, name: &str) -> Result<&'a str, String> {
    Ok(child(node, name)?.text().unwrap_or_default().trim())
}
