//! Names of the places where features are read.

use std::borrow::Cow;
use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A place inside a backbone whose feature map a probe can read, by its name.
///
/// Names are the backbone's own ([`Backbone::layers`](crate::Backbone::layers)); the constants are those of a
/// [`ResNet`](crate::ResNet). Layers are ordered by name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Layer(Cow<'static, str>);

impl Layer {
    /// The stem's convolution, after batch norm and ReLU, before any pooling.
    pub const CONV1: Self = Self(Cow::Borrowed("conv1"));
    /// Torchvision's `layer1`.
    pub const RES2: Self = Self(Cow::Borrowed("res2"));
    /// Torchvision's `layer2`.
    pub const RES3: Self = Self(Cow::Borrowed("res3"));
    /// Torchvision's `layer3`.
    pub const RES4: Self = Self(Cow::Borrowed("res4"));
    /// Torchvision's `layer4`.
    pub const RES5: Self = Self(Cow::Borrowed("res5"));
    /// The average of [`Layer::RES5`]: torchvision's `avgpool`, a map of one pixel.
    pub const RES5_AVG: Self = Self(Cow::Borrowed("res5avg"));
    /// The feature vectors themselves, as maps of one pixel: the one layer of a backbone that names no
    /// others.
    pub const FEATURES: Self = Self(Cow::Borrowed("features"));

    /// The layer called `name`.
    pub fn new(name: impl Into<Cow<'static, str>>) -> Self {
        Self(name.into())
    }

    /// Its name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for Layer {
    type Err = Infallible;

    fn from_str(name: &str) -> std::result::Result<Self, Infallible> {
        Ok(Self::new(name.to_owned()))
    }
}
