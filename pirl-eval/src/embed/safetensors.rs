//! safetensors files whose tensors grow at the same time: the sizes are known, so that each has its place.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};

use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use super::{Header, Rows, Sink};

/// Stands for "no label".
const UNLABELLED: i64 = -1;
const LABELS: &str = "labels";
const NAMES: &str = "names";
const NAME_OFFSETS: &str = "name_offsets";

pub(super) struct Safetensors<'a> {
    file: &'a mut File,
    /// Where the numbers of each layer begin, and how many a row has.
    layers: Vec<(u64, usize)>,
    labels: u64,
}

impl<'a> Safetensors<'a> {
    pub(super) fn begin(file: &'a mut File, header: &Header<'_>) -> io::Result<Self> {
        let (mut tensors, mut end) = (Vec::new(), 0usize);
        let mut place = |name: String, dtype, shape: Vec<usize>, bytes: usize| {
            let bytes = shape
                .iter()
                .try_fold(bytes, |bytes, side| bytes.checked_mul(*side));
            let start = end;
            end = bytes
                .and_then(|bytes| end.checked_add(bytes))
                .ok_or_else(too_large)?;
            tensors.push((
                name,
                TensorInfo {
                    dtype,
                    shape,
                    data_offsets: (start, end),
                },
            ));
            Ok::<_, io::Error>(start as u64)
        };
        // Numbers of eight bytes first: all are aligned then.
        let labels = place(LABELS.to_owned(), Dtype::I64, vec![header.images], 8)?;
        let names = |image| header.pack.name(image).unwrap_or_default();
        let named = header.pack.has_names();
        let name_offsets = named
            .then(|| {
                place(
                    NAME_OFFSETS.to_owned(),
                    Dtype::U64,
                    vec![header.images + 1],
                    8,
                )
            })
            .transpose()?;
        let mut layers = Vec::new();
        for (layer, dim) in header.layers {
            let start = place(layer.to_string(), Dtype::F32, vec![header.images, *dim], 4)?;
            layers.push((start, *dim));
        }
        let mut ends = vec![0usize];
        for image in 0..if named { header.images } else { 0 } {
            ends.push(ends[image] + names(image).len());
        }
        let bytes = ends[ends.len() - 1];
        let text = named
            .then(|| place(NAMES.to_owned(), Dtype::U8, vec![bytes], 1))
            .transpose()?;
        let mut notes: HashMap<String, String> = header
            .notes
            .iter()
            .map(|(key, value)| ((*key).to_owned(), value.clone()))
            .collect();
        let class_names = serde_json::to_string(header.pack.class_names())?;
        notes.insert("class_names".to_owned(), class_names);
        let metadata = Metadata::new(Some(notes), tensors).map_err(io::Error::other)?;
        let mut json = serde_json::to_vec(&metadata)?;
        json.resize(json.len().next_multiple_of(8), b' ');
        file.write_all(&(json.len() as u64).to_le_bytes())?;
        file.write_all(&json)?;
        let start = 8 + json.len() as u64;
        file.set_len(start + end as u64)?;
        let mut written = Self {
            file,
            layers: layers
                .into_iter()
                .map(|(at, dim)| (start + at, dim))
                .collect(),
            labels: start + labels,
        };
        if let (Some(offsets), Some(text)) = (name_offsets, text) {
            let ends = ends.iter().map(|end| (*end as u64).to_le_bytes());
            let ends: Vec<u8> = ends.flatten().collect();
            written.write_at(start + offsets, &ends)?;
            let all: String = (0..header.images).map(names).collect();
            written.write_at(start + text, all.as_bytes())?;
        }
        Ok(written)
    }

    fn write_at(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(at))?;
        self.file.write_all(bytes)
    }
}

fn too_large() -> io::Error {
    io::Error::other("the features are too large for a file")
}

impl Sink for Safetensors<'_> {
    fn add(&mut self, rows: &Rows<'_>) -> io::Result<()> {
        let labels = rows.labels.iter();
        let labels = labels.map(|label| label.map_or(UNLABELLED, i64::from).to_le_bytes());
        let labels: Vec<u8> = labels.flatten().collect();
        self.write_at(self.labels + 8 * rows.first as u64, &labels)?;
        for (place, layer) in rows.layers.iter().enumerate() {
            let Some(&(start, dim)) = self.layers.get(place) else {
                return Err(io::Error::other("more layers than were announced"));
            };
            let values = layer.values().iter();
            let bytes: Vec<u8> = values.flat_map(|value| value.to_le_bytes()).collect();
            self.write_at(start + 4 * (rows.first * dim) as u64, &bytes)?;
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> io::Result<()> {
        Ok(())
    }
}
