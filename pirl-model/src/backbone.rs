//! What a backbone is: any network from images to feature vectors.

use candle_core::Tensor;

use crate::config::Precision;
use crate::error::{ModelError, Result};
use crate::layer::Layer;
use crate::mode::Mode;
use crate::trainable::Trainable;

/// A network from images to feature vectors.
///
/// [`ResNet`](crate::ResNet) is one. Any network of Candle's can be another: its layers in a
/// [`VarMap`](candle_nn::VarMap), whose variables are its [`Trainable::parameter_sets`].
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::{Conv2d, Conv2dConfig, Module, VarBuilder, VarMap, conv2d};
/// use pirl_model::{Backbone, Layer, Mode, ModelError, ParamSet, Trainable};
///
/// struct Patches {
///     variables: VarMap,
///     conv: Conv2d,
/// }
///
/// impl Patches {
///     fn new(device: &Device) -> Result<Self, ModelError> {
///         let variables = VarMap::new();
///         let vb = VarBuilder::from_varmap(&variables, DType::F32, device);
///         let config = Conv2dConfig { stride: 4, ..Default::default() };
///         Ok(Self { conv: conv2d(3, 16, 4, config, vb.pp("conv"))?, variables })
///     }
/// }
///
/// impl Trainable for Patches {
///     fn parameter_sets(&self) -> Vec<ParamSet> {
///         ParamSet::of_var_map(&self.variables)
///     }
/// }
///
/// impl Backbone for Patches {
///     fn feature_dim(&self) -> usize {
///         16
///     }
///     fn forward(&self, images: &Tensor, _: Mode) -> Result<Tensor, ModelError> {
///         Ok(self.conv.forward(images)?.gelu()?.mean((2, 3))?)
///     }
/// }
///
/// let network = Patches::new(&Device::Cpu)?;
/// let images = Tensor::zeros((2, 3, 8, 8), DType::F32, &Device::Cpu)?;
/// let maps = network.feature_maps(&images, &[Layer::FEATURES])?;
/// assert_eq!(maps[0].1.dims(), [2, 16, 1, 1]);
/// # Ok::<(), pirl_model::ModelError>(())
/// ```
pub trait Backbone: Trainable {
    /// Length of a feature vector.
    fn feature_dim(&self) -> usize;

    /// `images`: `(b, 3, h, w)`, `f32`. Returns `(b, feature_dim)`, `f32`: of a ResNet the
    /// average-pooled last maps.
    ///
    /// # Errors
    /// [`ModelError::Input`] for another shape; [`ModelError::SingleValue`] if batch statistics
    /// are asked of a single value.
    fn forward(&self, images: &Tensor, mode: Mode) -> Result<Tensor>;

    /// The layers that [`Backbone::feature_maps`] can read, in the order of the forward pass;
    /// [`Layer::FEATURES`] alone unless implemented.
    fn layers(&self) -> Vec<Layer> {
        vec![Layer::FEATURES]
    }

    /// The maps of `layers` in evaluation mode, without gradient, in the order of
    /// [`Backbone::layers`]: `(b, c, h, w)` tensors, which may be strided views. Implement it together
    /// with [`Backbone::layers`].
    ///
    /// # Errors
    /// As [`Backbone::forward`]; [`ModelError::NoLayer`] for a layer that the backbone does not have.
    fn feature_maps(&self, images: &Tensor, layers: &[Layer]) -> Result<Vec<(Layer, Tensor)>> {
        check_layers(layers, &self.layers())?;
        if layers.is_empty() {
            return Ok(Vec::new());
        }
        let features = self.forward(images, Mode::Eval)?.detach();
        let map = features.unsqueeze(2)?.unsqueeze(3)?;
        Ok(vec![(Layer::FEATURES, map)])
    }

    /// Stores the activations of [`Backbone::forward`] in `precision`, in every mode;
    /// [`Backbone::feature_maps`] are always computed in `f32`. The default implementation accepts
    /// `f32` alone.
    ///
    /// # Errors
    /// [`ModelError::Setting`] for a precision that the backbone does not have.
    fn set_precision(&mut self, precision: Precision) -> Result<()> {
        pirl_core::check(
            "precision",
            precision,
            precision == Precision::F32,
            "must be f32: this backbone has no other",
        )?;
        Ok(())
    }
}

impl<T: Backbone + ?Sized> Backbone for Box<T> {
    fn feature_dim(&self) -> usize {
        (**self).feature_dim()
    }

    fn forward(&self, images: &Tensor, mode: Mode) -> Result<Tensor> {
        (**self).forward(images, mode)
    }

    fn layers(&self) -> Vec<Layer> {
        (**self).layers()
    }

    fn feature_maps(&self, images: &Tensor, layers: &[Layer]) -> Result<Vec<(Layer, Tensor)>> {
        (**self).feature_maps(images, layers)
    }

    fn set_precision(&mut self, precision: Precision) -> Result<()> {
        (**self).set_precision(precision)
    }
}

/// An error unless the backbone has all of `wanted`.
pub(crate) fn check_layers(wanted: &[Layer], known: &[Layer]) -> Result<()> {
    match wanted.iter().find(|layer| !known.contains(layer)) {
        Some(layer) => Err(ModelError::NoLayer {
            layer: layer.clone(),
            known: known.to_vec(),
        }),
        None => Ok(()),
    }
}
