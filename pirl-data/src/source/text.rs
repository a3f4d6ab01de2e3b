//! Text files as people's programs write them: with a byte-order mark, in UTF-16, in an encoding that an
//! XML file declares.

use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use encoding_rs::{Encoding, UTF_8, UTF_16BE, UTF_16LE};

use crate::DataError;

/// The bytes of a file of at most `limit` bytes.
///
/// # Errors
/// [`DataError::Io`]; [`DataError::Format`] of a larger file.
pub(super) fn read_bytes(
    path: &Path,
    limit: u64,
    format: &'static str,
) -> Result<Vec<u8>, DataError> {
    let file = File::open(path).map_err(DataError::io("read", path))?;
    let mut bytes = Vec::new();
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(DataError::io("read", path))?;
    if bytes.len() as u64 > limit {
        return Err(DataError::Format {
            path: path.to_owned(),
            format,
            reason: format!("it is larger than {limit} bytes"),
        });
    }
    Ok(bytes)
}

/// Text in the encoding of its byte-order mark, which is taken off, and in UTF-8 without one.
///
/// # Errors
/// The number of the first line that is not in that encoding, counted from 1, and what is wrong.
pub(super) fn decode(bytes: &[u8]) -> Result<Cow<'_, str>, (usize, String)> {
    match Encoding::for_bom(bytes) {
        Some((encoding, mark)) => decode_as(&bytes[mark..], encoding),
        // PowerShell's and Excel's UTF-16 has a mark; text in it without one has a zero in every pair.
        None if matches!(bytes, [first, 0, _, 0, ..] if *first != 0) => decode_as(bytes, UTF_16LE),
        None if matches!(bytes, [0, first, 0, _, ..] if *first != 0) => decode_as(bytes, UTF_16BE),
        None => decode_as(bytes, UTF_8),
    }
}

/// The text of an XML file: in the encoding of its byte-order mark, or else the one it declares.
///
/// # Errors
/// What is wrong.
pub(super) fn decode_xml(bytes: &[u8]) -> Result<Cow<'_, str>, String> {
    let plain = Encoding::for_bom(bytes).is_none() && !bytes.iter().take(4).any(|byte| *byte == 0);
    let declared = plain.then(|| declared(bytes)).flatten();
    let decoded = match declared {
        Some(name) => match Encoding::for_label(name.as_bytes()) {
            Some(encoding) => decode_as(bytes, encoding),
            None => {
                return Err(format!(
                    "it declares the encoding {name:?}, which is unknown"
                ));
            }
        },
        None => decode(bytes),
    };
    decoded.map_err(|(line, reason)| format!("line {line}: {reason}"))
}

/// The name in `<?xml version="1.0" encoding="NAME"?>`.
fn declared(bytes: &[u8]) -> Option<String> {
    let first = bytes.get(..bytes.len().min(200))?;
    let end = memchr::memmem::find(first, b"?>")?;
    let declaration = first.get(..end)?.strip_prefix(b"<?xml")?;
    let declaration = String::from_utf8_lossy(declaration).into_owned();
    let (_, value) = declaration.split_once("encoding")?;
    let value = value.trim_start().strip_prefix('=')?.trim_start();
    let quote = value
        .chars()
        .next()
        .filter(|quote| matches!(quote, '"' | '\''))?;
    Some(value[1..].split(quote).next()?.to_owned())
}

fn decode_as<'a>(
    bytes: &'a [u8],
    encoding: &'static Encoding,
) -> Result<Cow<'a, str>, (usize, String)> {
    match encoding.decode_without_bom_handling_and_without_replacement(bytes) {
        Some(text) => Ok(text),
        None if encoding == UTF_8 => {
            let upto =
                std::str::from_utf8(bytes).map_or_else(|error| error.valid_up_to(), str::len);
            let line = 1 + memchr::memchr_iter(b'\n', &bytes[..upto]).count();
            Err((line, "not UTF-8 text; save the file as UTF-8".to_owned()))
        }
        None => Err((1, format!("not text in {}", encoding.name()))),
    }
}
