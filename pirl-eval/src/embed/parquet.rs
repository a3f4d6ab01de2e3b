//! Parquet, by the `parquet` crate's columns, without Arrow.

use std::fs::File;
use std::io;
use std::sync::Arc;

use parquet::basic::{ConvertedType, LogicalType, Repetition, Type as PhysicalType};
use parquet::data_type::{ByteArray, ByteArrayType, DataType, FloatType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::types::{PrimitiveTypeBuilder, Type, TypePtr};

use super::{Header, Rows, Sink};

/// A row group is written once the features kept for it take so many bytes.
const GROUP_BYTES: usize = 64 << 20;

pub(super) struct Parquet<'a> {
    writer: SerializedFileWriter<&'a mut File>,
    group: Group,
}

/// Rows kept until there are enough.
#[derive(Default)]
struct Group {
    index: Vec<i64>,
    labels: Vec<i64>,
    labelled: Vec<i16>,
    classes: Vec<ByteArray>,
    classified: Vec<i16>,
    /// `None` if the pack has no names.
    names: Option<Vec<ByteArray>>,
    /// The numbers of each layer, and how many a row has.
    layers: Vec<(Vec<f32>, usize)>,
}

impl<'a> Parquet<'a> {
    pub(super) fn begin(file: &'a mut File, header: &Header<'_>) -> io::Result<Self> {
        let schema = schema(header).map_err(io::Error::other)?;
        let notes = header.notes.iter();
        let notes = notes.map(|(key, value)| KeyValue::new((*key).to_owned(), value.clone()));
        let properties = WriterProperties::builder()
            .set_dictionary_enabled(false) // features hardly repeat
            .set_key_value_metadata(Some(notes.collect()))
            .build();
        let writer = SerializedFileWriter::new(file, schema, Arc::new(properties));
        let layers = header.layers.iter();
        Ok(Self {
            writer: writer.map_err(io::Error::other)?,
            group: Group {
                layers: layers.map(|(_, dim)| (Vec::new(), *dim)).collect(),
                names: header.pack.has_names().then(Vec::new),
                ..Group::default()
            },
        })
    }

    fn write_group(&mut self) -> Result<(), ParquetError> {
        let mut rows = self.writer.next_row_group()?;
        self.group.write(&mut rows)?;
        rows.close()?;
        self.group.clear();
        Ok(())
    }
}

fn column(name: &str, physical: PhysicalType, is: Repetition) -> PrimitiveTypeBuilder<'_> {
    Type::primitive_type_builder(name, physical).with_repetition(is)
}

/// `index`, `label`, `class`, `name` if there are names, and for each layer a list of floats.
fn schema(header: &Header<'_>) -> Result<TypePtr, ParquetError> {
    let text = |name, is| {
        column(name, PhysicalType::BYTE_ARRAY, is)
            .with_logical_type(Some(LogicalType::String))
            .with_converted_type(ConvertedType::UTF8)
            .build()
    };
    let mut fields = vec![
        column("index", PhysicalType::INT64, Repetition::REQUIRED).build()?,
        column("label", PhysicalType::INT64, Repetition::OPTIONAL).build()?,
        text("class", Repetition::OPTIONAL)?,
    ];
    if header.pack.has_names() {
        fields.push(text("name", Repetition::REQUIRED)?);
    }
    for (layer, _) in header.layers {
        let element = column("element", PhysicalType::FLOAT, Repetition::REQUIRED).build()?;
        let list = Type::group_type_builder("list")
            .with_repetition(Repetition::REPEATED)
            .with_fields(vec![Arc::new(element)])
            .build()?;
        let layer = Type::group_type_builder(layer.as_str())
            .with_repetition(Repetition::REQUIRED)
            .with_logical_type(Some(LogicalType::List))
            .with_converted_type(ConvertedType::LIST)
            .with_fields(vec![Arc::new(list)])
            .build()?;
        fields.push(layer);
    }
    let fields = fields.into_iter().map(Arc::new).collect();
    Ok(Arc::new(
        Type::group_type_builder("features")
            .with_fields(fields)
            .build()?,
    ))
}

impl Group {
    fn bytes(&self) -> usize {
        let numbers: usize = self.layers.iter().map(|(values, _)| values.len()).sum();
        numbers * size_of::<f32>()
    }

    fn clear(&mut self) {
        let layers = std::mem::take(&mut self.layers).into_iter();
        *self = Self {
            layers: layers.map(|(_, dim)| (Vec::new(), dim)).collect(),
            names: self.names.is_some().then(Vec::new),
            ..Self::default()
        };
    }

    fn write<W: io::Write + Send>(
        &self,
        rows: &mut SerializedRowGroupWriter<'_, W>,
    ) -> Result<(), ParquetError> {
        write_column::<Int64Type, W>(rows, &self.index, None, None)?;
        write_column::<Int64Type, W>(rows, &self.labels, Some(&self.labelled), None)?;
        write_column::<ByteArrayType, W>(rows, &self.classes, Some(&self.classified), None)?;
        if let Some(names) = &self.names {
            write_column::<ByteArrayType, W>(rows, names, None, None)?;
        }
        for (values, dim) in &self.layers {
            // Every list has as many elements, at least one: the first begins it.
            let present = vec![1; values.len()];
            let goes_on: Vec<i16> = (0..values.len())
                .map(|at| i16::from(at % dim != 0))
                .collect();
            write_column::<FloatType, W>(rows, values, Some(&present), Some(&goes_on))?;
        }
        Ok(())
    }
}

fn write_column<T: DataType, W: io::Write + Send>(
    rows: &mut SerializedRowGroupWriter<'_, W>,
    values: &[T::T],
    defined: Option<&[i16]>,
    repeated: Option<&[i16]>,
) -> Result<(), ParquetError> {
    let Some(mut column) = rows.next_column()? else {
        return Err(ParquetError::General(
            "the schema has fewer columns".to_owned(),
        ));
    };
    column.typed::<T>().write_batch(values, defined, repeated)?;
    column.close()
}

impl Sink for Parquet<'_> {
    fn add(&mut self, rows: &Rows<'_>) -> io::Result<()> {
        let group = &mut self.group;
        for (row, label) in rows.labels.iter().enumerate() {
            group.index.push((rows.first + row) as i64);
            group.labels.extend(label.map(i64::from));
            group.labelled.push(i16::from(label.is_some()));
            let class = rows.class(*label);
            group.classes.extend(class.map(ByteArray::from));
            group.classified.push(i16::from(class.is_some()));
            if let Some(names) = &mut group.names {
                let name = rows.pack.name(rows.first + row).unwrap_or_default();
                names.push(ByteArray::from(name));
            }
        }
        for ((values, _), layer) in group.layers.iter_mut().zip(rows.layers) {
            values.extend_from_slice(layer.values());
        }
        if group.bytes() >= GROUP_BYTES {
            self.write_group().map_err(io::Error::other)?;
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> io::Result<()> {
        let mut end = || {
            if !self.group.index.is_empty() {
                self.write_group()?;
            }
            self.writer.finish()
        };
        end().map(drop).map_err(io::Error::other)
    }
}
