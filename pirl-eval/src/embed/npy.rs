//! NumPy's array files, version 1.0 of
//! <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>.

use std::fs::File;
use std::io::{self, BufWriter, Write};

use pirl_data::Pack;

use super::{Failed, Header, Rows, Sink, columns};

pub(super) struct Npy<'a>(BufWriter<&'a mut File>);

impl<'a> Npy<'a> {
    /// An array of the header's one layer.
    pub(super) fn begin(file: &'a mut File, header: &Header<'_>) -> io::Result<Self> {
        let dim = header.layers.first().map_or(0, |(_, dim)| *dim);
        let mut file = BufWriter::new(file);
        file.write_all(&preamble(header.images, dim))?;
        Ok(Self(file))
    }
}

/// What stands before the numbers, in a multiple of 64 bytes.
fn preamble(rows: usize, columns: usize) -> Vec<u8> {
    const START: &[u8] = b"\x93NUMPY\x01\x00";
    let dict =
        format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {columns}), }}");
    let unpadded = START.len() + 2 + dict.len() + 1;
    let padding = unpadded.next_multiple_of(64) - unpadded;
    let length = (dict.len() + padding + 1) as u16; // below 128: two numbers of at most 20 digits
    let dict = format!("{dict}{:padding$}\n", "");
    [START, &length.to_le_bytes(), dict.as_bytes()].concat()
}

/// The table of labels and names that stands beside an array.
pub(super) fn write_labels(file: &mut File, pack: &Pack) -> Result<(), Failed> {
    let mut table = csv::Writer::from_writer(file);
    table.write_record(columns(pack)).map_err(io::Error::from)?;
    for index in 0..pack.len() {
        let rows = Rows {
            first: index,
            layers: &[],
            labels: &[pack.label(index)],
            pack,
        };
        table
            .write_record(rows.describe(0))
            .map_err(io::Error::from)?;
    }
    Ok(table.flush()?)
}

impl Sink for Npy<'_> {
    fn add(&mut self, rows: &Rows<'_>) -> io::Result<()> {
        for value in rows.layers.iter().flat_map(|layer| layer.values()) {
            self.0.write_all(&value.to_le_bytes())?;
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_array_begins_as_numpy_writes_it() {
        // f = io.BytesIO(); np.save(f, np.zeros((60000, 512), np.float32)); f.getvalue()[:128]
        let expected = format!(
            "{{'descr': '<f4', 'fortran_order': False, 'shape': (60000, 512), }}{:52}\n",
            ""
        );
        let written = preamble(60000, 512);
        assert_eq!(written.len(), 128);
        assert_eq!(written[..10], *b"\x93NUMPY\x01\x00\x76\x00");
        assert_eq!(written[10..], *expected.as_bytes());
    }
}
