//! A network filled from a file of weights.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::BackboneWeights;
use crate::config::ModelConfig;
use crate::error::{ModelError, Result};
use crate::resnet::ResNet;
use crate::trainable::Trainable;

/// What became of the tensors of a file, by [`BackboneWeights::fill`]. Displayed, it is a line that says
/// what was taken, and by the first parts of their names what was not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Filled {
    /// What the backbone's names begin with in the file; empty, or ending in a dot.
    pub prefix: String,
    /// What those of other backbones in the file begin with, which are passed over.
    pub others: Vec<String>,
    /// Torchvision's names of those loaded.
    pub matched: Vec<String>,
    /// Names the network has and the file lacks: counts of batches.
    pub missing: Vec<String>,
    /// Names in the file that are no part of a backbone.
    pub left_over: Vec<String>,
}

impl BackboneWeights {
    /// Loads all parameters and statistics into `network`; counts of batches may be missing.
    ///
    /// # Errors
    /// [`ModelError::OtherNetwork`], before anything is loaded; [`ModelError::WrongShape`],
    /// [`ModelError::Missing`] and [`ModelError::Unexpected`] for tensors changed since they were read.
    pub fn fill(&self, network: &ResNet) -> Result<Filled> {
        let (own, other) = (&self.config, network.config());
        let shape =
            |config: &ModelConfig| (config.arch, config.width, config.stem, config.channels);
        if shape(own) != shape(other) {
            return Err(ModelError::OtherNetwork {
                file: own.network(),
                network: other.network(),
            });
        }
        let report = network.load(&self.state)?;
        report.ensure_whole()?;
        Ok(Filled {
            prefix: self.prefix.clone(),
            others: self.others.clone(),
            matched: report.matched,
            missing: report.missing,
            left_over: self.left_over.clone(),
        })
    }
}

impl fmt::Display for Filled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tensors of the backbone", self.matched.len())?;
        if !self.prefix.is_empty() {
            write!(f, " under {}", self.prefix)?;
        }
        if !self.others.is_empty() {
            let others = self.others.join(", ");
            write!(
                f,
                "; WARNING: the file has another backbone, under {others}; --weights-prefix chooses it"
            )?;
        }
        if !self.missing.is_empty() {
            write!(f, "; {} counts of batches missing", self.missing.len())?;
        }
        if self.left_over.is_empty() {
            return Ok(());
        }
        let mut groups = BTreeMap::<&str, usize>::new();
        for name in &self.left_over {
            // All but the tensor's own name, and no more than five parts of it.
            let group = name
                .rsplit_once('.')
                .map_or(name.as_str(), |(group, _)| group);
            let end = group
                .match_indices('.')
                .nth(4)
                .map_or(group.len(), |(at, _)| at);
            *groups.entry(&group[..end]).or_default() += 1;
        }
        const SHOWN: usize = 8;
        let mut shown: Vec<String> = groups
            .iter()
            .take(SHOWN)
            .map(|(group, count)| format!("{group} ({count})"))
            .collect();
        if groups.len() > SHOWN {
            shown.push(format!("{} more", groups.len() - SHOWN));
        }
        write!(f, "; left over: {}", shown.join(", "))
    }
}
