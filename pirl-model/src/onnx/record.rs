//! The engine that writes down what a network does, as nodes of an ONNX graph.

use candle_core::Device;

use super::schema::{AttributeProto, FLOAT, INT, INTS, NodeProto, TensorProto};
use crate::engine::{Conv, Engine, Linear, Norm};
use crate::error::Result;
use crate::params::{Buffers, ParamId, ParamSet};
use crate::resnet::ResNet;

/// A graph in progress; values are the names of what nodes put out.
pub(super) struct Recorder<'a> {
    params: &'a ParamSet,
    buffers: &'a Buffers,
    nodes: Vec<NodeProto>,
    tensors: Vec<TensorProto>,
}

impl<'a> Recorder<'a> {
    pub(super) fn new(network: &'a ResNet) -> Self {
        Self {
            params: network.parameters(),
            buffers: network.buffers(),
            nodes: Vec::new(),
            tensors: Vec::new(),
        }
    }

    pub(super) fn finish(self) -> (Vec<NodeProto>, Vec<TensorProto>) {
        (self.nodes, self.tensors)
    }

    fn node(
        &mut self,
        op: &str,
        inputs: &[&str],
        output: String,
        attributes: &[Attribute],
    ) -> String {
        self.nodes.push(NodeProto {
            input: inputs.iter().map(|&name| name.to_owned()).collect(),
            output: vec![output.clone()],
            name: output.clone(),
            op_type: op.to_owned(),
            attribute: attributes.iter().map(AttributeProto::from).collect(),
        });
        output
    }

    fn tensor(
        &mut self,
        name: String,
        shape: &[usize],
        numbers: impl Iterator<Item = f32>,
    ) -> String {
        self.tensors.push(TensorProto {
            dims: shape.iter().map(|&side| side as i64).collect(),
            data_type: FLOAT,
            name: name.clone(),
            raw_data: numbers.flat_map(f32::to_le_bytes).collect(),
        });
        name
    }

    /// A parameter's numbers.
    fn numbers(&self, id: ParamId) -> Result<Vec<f32>> {
        let tensor = self.params.get(&self.params.param(id).name)?;
        Ok(tensor.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?)
    }

    fn unknown<T>(what: &str) -> Result<T> {
        let message = format!("{what} is not part of a ResNet, and not exported to ONNX");
        Err(candle_core::Error::Msg(message).into())
    }
}

/// An attribute of a node.
enum Attribute {
    Int(&'static str, i64),
    Ints(&'static str, Vec<i64>),
}

impl Attribute {
    fn ints(name: &'static str, value: usize, count: usize) -> Self {
        Self::Ints(name, vec![value as i64; count])
    }

    /// Of a square window.
    fn window(kernel: usize, stride: usize, padding: usize) -> [Self; 3] {
        [
            Self::ints("kernel_shape", kernel, 2),
            Self::ints("strides", stride, 2),
            Self::ints("pads", padding, 4),
        ]
    }
}

impl From<&Attribute> for AttributeProto {
    fn from(attribute: &Attribute) -> Self {
        let (name, i, ints, kind) = match attribute {
            Attribute::Int(name, value) => (name, Some(*value), Vec::new(), INT),
            Attribute::Ints(name, values) => (name, None, values.clone(), INTS),
        };
        Self {
            name: (*name).to_owned(),
            i,
            ints,
            kind,
        }
    }
}

impl Engine for Recorder<'_> {
    type Value = String;

    /// The batch norm folded in: `w * scale` and `shift`, computed in `f64`.
    fn conv_norm(
        &mut self,
        conv: &Conv,
        norm: &Norm,
        x: &String,
        residual: Option<&String>,
        relu: bool,
    ) -> Result<String> {
        let weight = self.params.param(conv.weight).clone();
        let name = weight.name.trim_end_matches(".weight");
        let (gamma, beta) = (self.numbers(norm.weight)?, self.numbers(norm.bias)?);
        let (scales, shifts): (Vec<f64>, Vec<f32>) = self.buffers.with(norm.stats, |running| {
            let channels = gamma
                .iter()
                .zip(&beta)
                .zip(running.mean.iter().zip(&running.var));
            let folded = channels.map(|((&gamma, &beta), (&mean, &var))| {
                let scale = f64::from(gamma) / (f64::from(var) + f64::from(Norm::EPS)).sqrt();
                (scale, (f64::from(beta) - f64::from(mean) * scale) as f32)
            });
            folded.unzip()
        })?;
        let numbers = self.numbers(conv.weight)?;
        let of_channel = (numbers.len() / scales.len().max(1)).max(1);
        let numbers = numbers.chunks(of_channel).zip(&scales);
        let numbers = numbers.flat_map(|(numbers, scale)| {
            numbers.iter().map(move |&w| (f64::from(w) * scale) as f32)
        });
        let w = self.tensor(weight.name.clone(), &weight.shape, numbers);
        let b = self.tensor(format!("{name}.bias"), &[conv.c_out], shifts.into_iter());
        let window = Attribute::window(conv.kernel, conv.stride, conv.padding);
        let mut value = self.node("Conv", &[x, &w, &b], format!("{name}.bn"), &window);
        if let Some(residual) = residual {
            value = self.node("Add", &[&value, residual], format!("{name}.add"), &[]);
        }
        if relu {
            value = self.node("Relu", &[&value], format!("{name}.relu"), &[]);
        }
        Ok(value)
    }

    fn max_pool(&mut self, x: &String) -> Result<String> {
        let window = Attribute::window(3, 2, 1);
        Ok(self.node("MaxPool", &[x], "maxpool".to_owned(), &window))
    }

    fn average_pool(&mut self, x: &String) -> Result<String> {
        let average = self.node("GlobalAveragePool", &[x], "avgpool".to_owned(), &[]);
        let flat = [Attribute::Int("axis", 1)];
        Ok(self.node("Flatten", &[&average], "flatten".to_owned(), &flat))
    }

    fn batch_norm(&mut self, _: &Norm, _: &String, _: Option<&String>, _: bool) -> Result<String> {
        Self::unknown("a batch norm without a convolution")
    }

    fn linear(&mut self, _: &Linear, _: &String) -> Result<String> {
        Self::unknown("a linear layer")
    }

    fn relu(&mut self, _: &String) -> Result<String> {
        Self::unknown("a ReLU on its own")
    }

    fn join(&mut self, _: &String, _: usize) -> Result<String> {
        Self::unknown("joined vectors")
    }
}
