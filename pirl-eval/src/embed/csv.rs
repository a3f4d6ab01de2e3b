//! Comma-separated values, numbers as short as they can be to be read back as they are.

use std::fs::File;
use std::io;

use super::{Header, Rows, Sink, columns};

pub(super) struct Csv<'a>(csv::Writer<&'a mut File>);

impl<'a> Csv<'a> {
    pub(super) fn begin(file: &'a mut File, header: &Header<'_>) -> io::Result<Self> {
        let mut table = csv::Writer::from_writer(file);
        let mut names = columns(header.pack);
        for (layer, dim) in header.layers {
            names.extend((0..*dim).map(|column| format!("{layer}_{column}")));
        }
        table.write_record(names)?;
        Ok(Self(table))
    }
}

impl Sink for Csv<'_> {
    fn add(&mut self, rows: &Rows<'_>) -> io::Result<()> {
        for row in 0..rows.labels.len() {
            for field in rows.describe(row) {
                self.0.write_field(field)?;
            }
            for value in rows.layers.iter().flat_map(|layer| layer.row(row)) {
                self.0.write_field(value.to_string())?;
            }
            self.0.write_record(None::<&[u8]>)?;
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> io::Result<()> {
        self.0.flush()
    }
}
