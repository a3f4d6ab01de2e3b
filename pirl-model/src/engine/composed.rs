//! The engine of devices other than CPUs, and the reference: the same networks as Candle tensors, op
//! by op. The ops are this crate's where it has some for the device; else, or if the plain reference
//! is asked for, they are Candle's own.
//!
//! Nothing is read back from the device, neither during a pass nor at its end: what it adds to the running
//! statistics stays there until somebody asks for them. Batch norm that is synced is the exception.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::cut::{Cut, cut_out};
use super::{Conv, Engine, Linear, Norm};
use crate::config::Precision;
use crate::error::{ModelError, Result};
use crate::mode::Mode;
use crate::ops::{self, batch_norm, reference};
use crate::params::{Buffers, ParamId, ParamSet, Seen};
use crate::peers::Peers;
use pirl_core::Ops;

/// A forward pass in progress; values are `(n, c)` tensors or maps, NHWC with this crate's ops and NCHW with
/// Candle's: between ops no map changes its layout.
pub(crate) struct Composed<'a> {
    set: &'a ParamSet,
    /// Of a pass that is differentiated.
    cut: Option<Cut>,
    /// Those asked for so far, by their first parameter.
    parts: Vec<Option<Tensor>>,
    buffers: &'a Buffers,
    mode: Mode,
    ops: Ops,
    /// Of maps and vectors, and of the factors of products.
    precision: Precision,
    /// The parts of a batch that batch norm is synced with.
    peers: Option<Arc<dyn Peers>>,
    statistics: Vec<Seen>,
}

impl<'a> Composed<'a> {
    /// A pass with the chosen `ops` and activations in `precision`, `f32` for the reference.
    pub(crate) fn new(
        set: &'a ParamSet,
        buffers: &'a Buffers,
        mode: Mode,
        ops: Ops,
        precision: Precision,
    ) -> Result<Self> {
        let flat = set.var().as_tensor();
        Ok(Self {
            set,
            cut: mode.records().then(|| Cut::new(flat)).transpose()?,
            parts: vec![None; set.params().len()],
            buffers,
            mode,
            ops,
            precision,
            peers: None,
            statistics: Vec::new(),
        })
    }

    /// The same pass, with batch norm over the parts of `peers` too.
    pub(crate) fn synced_with(self, peers: Option<Arc<dyn Peers>>) -> Self {
        Self { peers, ..self }
    }

    /// A parameter in its own shape and type.
    fn param(&mut self, id: ParamId) -> Result<Tensor> {
        let set = self.set;
        self.part(id, &set.param(id).shape, DType::F32, false)
    }

    /// A part of the set that begins with the parameter `first`; always the same for the same one.
    fn part(
        &mut self,
        first: ParamId,
        shape: &[usize],
        dtype: DType,
        channels_last: bool,
    ) -> Result<Tensor> {
        if let Some(found) = &self.parts[first.index()] {
            return Ok(found.clone());
        }
        let start = self.set.param(first).offset;
        let part = match &self.cut {
            Some(cut) => cut.part(start, shape, dtype, channels_last)?,
            None => {
                let flat = self.set.var().as_detached_tensor();
                cut_out(&flat, start, shape, dtype, channels_last)?
            }
        };
        Ok(self.parts[first.index()].insert(part).clone())
    }

    /// Maps, or vectors, as the pass takes them.
    pub(crate) fn input(&self, x: &Tensor) -> Result<Tensor> {
        Ok(match x.rank() {
            4 if self.ops == Ops::Fast => x.permute((0, 2, 3, 1))?.contiguous()?,
            _ => x.clone(),
        })
    }

    /// A value of the pass as others take it: maps are NCHW.
    pub(crate) fn output(&self, value: &Tensor) -> Result<Tensor> {
        Ok(match value.rank() {
            4 if self.ops == Ops::Fast => value.permute((0, 3, 1, 2))?,
            _ => value.clone(),
        })
    }

    /// Gamma and beta of a batch norm, which follow each other in the set, as one.
    fn affine(&mut self, layer: &Norm) -> Result<Tensor> {
        let (gamma, beta) = (self.set.param(layer.weight), self.set.param(layer.bias));
        let len = gamma.elements() + beta.elements();
        self.part(layer.weight, &[len], DType::F32, false)
    }

    /// Batch norm of `maps`, of `rows` numbers a channel, by mean and variance over the parts of `peers` too, then
    /// the residual, then ReLU: by Candle's own ops, in `f32`. Returns the output, mean and biased variance, and
    /// the numbers of a channel in all parts.
    fn synced_norm(
        &mut self,
        layer: &Norm,
        maps: &Tensor,
        rows: usize,
        residual: Option<&Tensor>,
        relu: bool,
        peers: &Arc<dyn Peers>,
    ) -> Result<(Tensor, Tensor, usize)> {
        let (nhwc, dtype) = (self.ops == Ops::Fast, maps.dtype());
        let plain = |x: &Tensor| -> Result<Tensor> {
            let x = x.reshape(maps.shape())?.to_dtype(DType::F32)?;
            Ok(if nhwc { x.permute((0, 3, 1, 2))? } else { x })
        };
        let (x, residual) = (plain(maps)?, residual.map(plain).transpose()?);
        let c = x.dim(1)?;
        let (gamma, beta) = match nhwc {
            true => {
                let affine = self.affine(layer)?;
                (affine.narrow(0, 0, c)?, affine.narrow(0, c, c)?)
            }
            false => (self.param(layer.weight)?, self.param(layer.bias)?),
        };
        let mean = x.mean_keepdim((0, 2, 3))?;
        let var = x.broadcast_sub(&mean)?.sqr()?.mean_keepdim((0, 2, 3))?;
        let own = Tensor::cat(&[mean.flatten_all()?, var.flatten_all()?], 0)?;
        let (joined, all) = batch_norm::join(&own.to_device(&Device::Cpu)?, rows, peers)?;
        if all < 2 {
            let layer = self.buffers.with(layer.stats, |norm| norm.name.clone())?;
            return Err(ModelError::SingleValue { layer });
        }
        let joined = joined.to_device(x.device())?;
        let (mean, var) = (joined.narrow(0, 0, c)?, joined.narrow(0, c, c)?);
        let (eps, residual) = (Norm::EPS.into(), residual.as_ref());
        let out = reference::batch_norm_eval(&x, &gamma, &beta, &mean, &var, eps, residual, relu)?;
        let out = out.to_dtype(dtype)?;
        let out = match nhwc {
            true => out.permute((0, 2, 3, 1))?.contiguous()?,
            false => out,
        };
        Ok((out, joined, all))
    }

    /// A parameter as the factor of a product.
    fn factor(&mut self, id: ParamId, channels_last: bool) -> Result<Tensor> {
        let set = self.set;
        let dtype = self.precision.dtype();
        self.part(id, &set.param(id).shape, dtype, channels_last)
    }

    /// Adds to the running statistics what the pass has seen.
    pub(crate) fn finish(self) -> Result<()> {
        self.buffers
            .see(&self.statistics, self.mode == Mode::Calibrate)
    }
}

impl Engine for Composed<'_> {
    type Value = Tensor;

    fn conv_norm(
        &mut self,
        conv: &Conv,
        norm: &Norm,
        x: &Tensor,
        residual: Option<&Tensor>,
        relu: bool,
    ) -> Result<Tensor> {
        let weight = self.factor(conv.weight, self.ops == Ops::Fast)?;
        let (stride, padding) = (conv.stride, conv.padding);
        let tf32 = self.precision == Precision::Tf32;
        let x = match self.ops {
            Ops::Fast => ops::conv2d_nhwc(x, &weight, stride, padding, tf32)?,
            Ops::Reference => reference::conv2d(x, &weight, stride, padding)?,
        };
        self.batch_norm(norm, &x, residual, relu)
    }

    fn batch_norm(
        &mut self,
        layer: &Norm,
        x: &Tensor,
        residual: Option<&Tensor>,
        relu: bool,
    ) -> Result<Tensor> {
        // A vector is a map of one pixel.
        let maps = match (x.dims(), self.ops) {
            (&[n, c], Ops::Fast) => x.reshape((n, 1, 1, c))?,
            (&[n, c], Ops::Reference) => x.reshape((n, c, 1, 1))?,
            _ => x.clone(),
        };
        let channels = self.set.param(layer.weight).elements();
        let mut rows = maps.elem_count() / channels.max(1);
        let given = if self.mode.uses_batch() {
            if rows < 2 && self.peers.is_none() {
                let layer = self.buffers.with(layer.stats, |norm| norm.name.clone())?;
                return Err(ModelError::SingleValue { layer });
            }
            None
        } else {
            let tensor = |numbers: &[f32]| Tensor::from_slice(numbers, channels, x.device());
            let running = self.buffers.with(layer.stats, |norm| {
                Ok::<_, ModelError>((tensor(&norm.mean)?, tensor(&norm.var)?))
            });
            Some(running??)
        };
        let (eps, given) = (Norm::EPS.into(), given.as_ref());
        let synced = self.peers.clone().filter(|_| given.is_none());
        let (out, statistics) = match (self.ops, synced) {
            (_, Some(peers)) => {
                let (out, statistics, all) =
                    self.synced_norm(layer, &maps, rows, residual, relu, &peers)?;
                rows = all;
                (out, statistics)
            }
            (Ops::Fast, None) => {
                let affine = self.affine(layer)?;
                let given = given.map(|(mean, var)| (mean, var));
                ops::batch_norm_nhwc(&maps, &affine, given, eps, residual, relu)?
            }
            (Ops::Reference, None) => {
                let (gamma, beta) = (self.param(layer.weight)?, self.param(layer.bias)?);
                match given {
                    None => {
                        let (out, mean, var) =
                            reference::batch_norm_train(&maps, &gamma, &beta, eps, residual, relu)?;
                        (out, Tensor::cat(&[mean, var], 0)?)
                    }
                    Some((mean, var)) => {
                        let out = reference::batch_norm_eval(
                            &maps, &gamma, &beta, mean, var, eps, residual, relu,
                        )?;
                        (out, mean.clone())
                    }
                }
            }
        };
        if given.is_none() {
            self.statistics.push(Seen {
                norm: layer.stats,
                statistics,
                rows,
            });
        }
        match x.rank() {
            2 => Ok(out.reshape(x.shape())?),
            _ => Ok(out),
        }
    }

    fn max_pool(&mut self, x: &Tensor) -> Result<Tensor> {
        Ok(match self.ops {
            Ops::Fast => ops::max_pool_nhwc(x)?,
            Ops::Reference => reference::max_pool2d(x, 3, 2, 1)?,
        })
    }

    fn average_pool(&mut self, x: &Tensor) -> Result<Tensor> {
        // In short types the sum over a map would be rounded at every term.
        let x = x.to_dtype(DType::F32)?;
        let mean = match self.ops {
            Ops::Fast => x.mean((1, 2))?,
            Ops::Reference => reference::global_average_pool(&x)?,
        };
        Ok(mean.to_dtype(self.precision.dtype())?)
    }

    fn linear(&mut self, layer: &Linear, x: &Tensor) -> Result<Tensor> {
        let (weight, bias) = (
            self.factor(layer.weight, false)?,
            self.factor(layer.bias, false)?,
        );
        Ok(reference::linear(x, &weight, Some(&bias))?)
    }

    fn relu(&mut self, x: &Tensor) -> Result<Tensor> {
        Ok(reference::relu(x)?)
    }

    fn join(&mut self, x: &Tensor, group: usize) -> Result<Tensor> {
        let (n, c) = x.dims2()?;
        Ok(x.reshape((n / group, group * c))?)
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error;
    use std::sync::{Barrier, Mutex};
    use std::thread;

    use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

    use super::*;
    use crate::engine::Network;
    use crate::layer::Layer;
    use crate::params::Builder;

    /// Of every kind of layer, one with a residual, and one that is used twice.
    struct Small {
        first: (Conv, Norm),
        again: (Conv, Norm),
        vectors: Norm,
        linear: Linear,
    }

    impl Small {
        fn new(builder: &mut Builder) -> Self {
            Self {
                first: (
                    Conv::new(builder, "a", (3, 6), 3, 2),
                    Norm::new(builder, "an", 6),
                ),
                again: (
                    Conv::new(builder, "b", (6, 6), 1, 1),
                    Norm::new(builder, "bn", 6),
                ),
                vectors: Norm::new(builder, "vn", 6),
                linear: Linear::new(builder, "l", 6, 4),
            }
        }
    }

    impl Network for Small {
        fn forward<E: Engine>(
            &self,
            engine: &mut E,
            x: &E::Value,
            _: &mut dyn FnMut(Layer, &E::Value),
        ) -> Result<E::Value> {
            let x = engine.conv_norm(&self.first.0, &self.first.1, x, None, true)?;
            let x = engine.max_pool(&x)?;
            let x = engine.conv_norm(&self.again.0, &self.again.1, &x, Some(&x), true)?;
            let x = engine.conv_norm(&self.again.0, &self.again.1, &x, Some(&x), true)?;
            let x = engine.average_pool(&x)?;
            let x = engine.batch_norm(&self.vectors, &x, None, false)?;
            let x = engine.relu(&x)?;
            let x = engine.linear(&self.linear, &x)?;
            engine.join(&x, 2)
        }
    }

    /// Output, gradients of input and parameters, and the running statistics after a pass over so many of the
    /// images from the `start`th on.
    fn pass(
        ops: Ops,
        mode: Mode,
        (start, images): (usize, usize),
        peers: Option<Arc<dyn Peers>>,
    ) -> Vec<Vec<f32>> {
        let mut builder = Builder::new(ChaCha8Rng::seed_from_u64(1));
        let network = Small::new(&mut builder);
        let (set, buffers) = builder.finish(&Device::Cpu).unwrap();
        let image = 3 * 11 * 9;
        let numbers = benches::fill(1, (start + images) * image)[start * image..].to_vec();
        let x = candle_core::Var::from_vec(numbers, (images, 3, 11, 9), &Device::Cpu).unwrap();
        let engine = Composed::new(&set, &buffers, mode, ops, Precision::F32);
        let mut engine = engine.unwrap().synced_with(peers);
        let input = engine.input(x.as_tensor()).unwrap();
        let out = network.forward(&mut engine, &input, &mut |_, _| {});
        let out = engine.output(&out.unwrap()).unwrap();
        engine.finish().unwrap();
        let each = out.elem_count() / images;
        let weights = benches::fill(2, (start + images) * each)[start * each..].to_vec();
        let weights = Tensor::from_vec(weights, out.shape(), x.device());
        let loss = (&out * weights.unwrap()).unwrap().sum_all().unwrap();
        let gradients = loss.backward().unwrap();
        let mut found = vec![out];
        found.extend(
            [x.as_tensor(), set.var().as_tensor()].map(|of| gradients.get(of).unwrap().clone()),
        );
        let statistics = buffers.entries().unwrap().into_iter();
        found.extend(statistics.map(|(_, tensor)| tensor.to_dtype(DType::F32).unwrap()));
        let flat = |tensor: Tensor| tensor.flatten_all().unwrap().to_vec1().unwrap();
        found.into_iter().map(flat).collect()
    }

    #[test]
    fn maps_that_keep_their_layout_have_the_numbers_of_candles_ops() {
        for mode in [Mode::Train, Mode::Frozen] {
            let [found, expected] =
                [Ops::Fast, Ops::Reference].map(|ops| pass(ops, mode, (0, 4), None));
            assert_near(&found, &expected);
        }
    }

    fn assert_near(found: &[Vec<f32>], expected: &[Vec<f32>]) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            let scale = expected.iter().fold(1e-3, |most: f32, x| most.max(x.abs()));
            let pairs = found.iter().zip(expected);
            let error = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert_eq!(found.len(), expected.len());
            assert!(error < 1e-4 * scale, "{error} of {scale}");
        }
    }

    /// Two threads with half of the images each.
    struct Halves {
        barrier: Barrier,
        given: Mutex<[Vec<f64>; 2]>,
    }

    struct Half(usize, Arc<Halves>);

    impl Peers for Half {
        fn any(&self) -> bool {
            true
        }

        fn gather(&self, own: Vec<f64>) -> Result<Vec<Vec<f64>>, Box<dyn Error + Send + Sync>> {
            self.1.given.lock().unwrap()[self.0] = own;
            self.1.barrier.wait();
            let both = self.1.given.lock().unwrap().to_vec();
            self.1.barrier.wait();
            Ok(both)
        }
    }

    #[test]
    fn synced_halves_are_the_whole_in_either_layout() {
        for ops in [Ops::Fast, Ops::Reference] {
            let whole = pass(ops, Mode::Train, (0, 4), None);
            let halves = Arc::new(Halves {
                barrier: Barrier::new(2),
                given: Mutex::default(),
            });
            let half = |at: usize| {
                let half: Arc<dyn Peers> = Arc::new(Half(at, Arc::clone(&halves)));
                thread::spawn(move || pass(ops, Mode::Train, (2 * at, 2), Some(half)))
            };
            let [first, second] = [half(0), half(1)].map(|half| half.join().unwrap());
            let mut both = first.clone();
            for at in [0, 1] {
                both[at].extend(&second[at]);
            }
            for (sum, other) in both[2].iter_mut().zip(&second[2]) {
                *sum += other;
            }
            assert_eq!(first[3..], second[3..]);
            assert_near(&both, &whole);
        }
    }
}
