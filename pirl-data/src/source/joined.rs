use std::collections::BTreeMap;

use super::{RawSample, Source};
use crate::{DataError, Skipped};

/// Several sources put together, in their order; classes of the same name are one class.
pub struct Joined {
    sources: Vec<Box<dyn Source>>,
    /// The first sample of each source.
    starts: Vec<usize>,
    len: usize,
    class_names: Vec<String>,
    /// Of each source: its labels in `class_names`.
    labels: Vec<Vec<u32>>,
    skipped: Vec<Skipped>,
    notes: Vec<Skipped>,
}

impl Joined {
    /// Classes are numbered by their names in sorted order, unless all sources have the same.
    ///
    /// # Errors
    /// [`DataError::Shards`] when some are labelled and some are not.
    pub fn new(sources: Vec<Box<dyn Source>>) -> Result<Self, DataError> {
        let lists: Vec<&[String]> = sources.iter().map(|source| source.class_names()).collect();
        let same = lists.windows(2).all(|pair| pair[0] == pair[1]);
        if !same && lists.iter().any(|names| names.is_empty()) {
            let named: Vec<_> = sources
                .iter()
                .filter(|s| s.class_names().is_empty())
                .collect();
            return Err(DataError::Shards {
                path: named
                    .first()
                    .map(|source| source.describe())
                    .unwrap_or_default()
                    .into(),
                reason: "it has no classes, but other inputs have".to_owned(),
            });
        }
        let mut class_names: Vec<String> = match lists.first() {
            Some(names) if same => names.to_vec(),
            _ => lists.concat(),
        };
        if !same {
            class_names.sort();
            class_names.dedup();
        }
        let number = |name: &String| {
            let place = class_names.iter().position(|known| known == name);
            place
                .and_then(|place| u32::try_from(place).ok())
                .unwrap_or(u32::MAX)
        };
        let labels = lists
            .iter()
            .map(|names| names.iter().map(number).collect())
            .collect();
        let mut starts = Vec::with_capacity(sources.len());
        let mut len = 0;
        for source in &sources {
            starts.push(len);
            len += source.len();
        }
        Ok(Self {
            skipped: sources
                .iter()
                .flat_map(|source| source.skipped())
                .cloned()
                .collect(),
            notes: sources
                .iter()
                .flat_map(|source| source.notes())
                .cloned()
                .collect(),
            sources,
            starts,
            len,
            class_names,
            labels,
        })
    }

    /// The source of a sample, its number among the sources, and the sample's number there.
    fn locate(&self, index: usize) -> Option<(usize, &dyn Source, usize)> {
        let number = self
            .starts
            .partition_point(|start| *start <= index)
            .checked_sub(1)?;
        let source = self.sources.get(number)?;
        Some((number, &**source, index - self.starts.get(number)?))
    }
}

impl Source for Joined {
    fn len(&self) -> usize {
        self.len
    }

    fn class_names(&self) -> &[String] {
        &self.class_names
    }

    fn read(&self, index: usize) -> Result<RawSample<'_>, DataError> {
        let len = self.len;
        let (number, source, inside) = self.locate(index).ok_or(DataError::Index { index, len })?;
        let mut sample = source.read(inside)?;
        let joined = |label: u32| self.labels.get(number)?.get(label as usize).copied();
        sample.label = sample.label.map(|label| joined(label).unwrap_or(u32::MAX));
        for label in sample
            .objects
            .iter_mut()
            .flat_map(|objects| &mut objects.labels)
        {
            *label = joined(*label).unwrap_or(u32::MAX);
        }
        Ok(sample)
    }

    fn describe(&self) -> String {
        let parts: Vec<String> = self
            .sources
            .iter()
            .map(|source| source.describe())
            .collect();
        parts.join(" and ")
    }

    fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }

    fn notes(&self) -> &[Skipped] {
        &self.notes
    }

    fn passed_over(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for (ending, count) in self.sources.iter().flat_map(|source| source.passed_over()) {
            *counts.entry(ending).or_default() += count;
        }
        counts
    }

    fn annotated_size(&self, index: usize) -> Option<(usize, usize)> {
        let (_, source, inside) = self.locate(index)?;
        source.annotated_size(inside)
    }

    fn stamp(&self, index: usize) -> u128 {
        self.locate(index)
            .map_or(0, |(_, source, inside)| source.stamp(inside))
    }
}
