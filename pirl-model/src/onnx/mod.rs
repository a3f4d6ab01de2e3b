//! ONNX files of ResNets, written and read back.
//!
//! The graph is what [`Network::forward`](crate::engine::Network) does, recorded by an [`Engine`] whose values
//! are names, so that it cannot differ from the network.

mod read;
mod record;
mod schema;

use std::collections::HashMap;

use crate::error::Result;
use crate::resnet::ResNet;
use crate::weights::PRECISE;
use record::Recorder;
use schema::{
    DimensionProto, FLOAT, GraphProto, OperatorSetIdProto, TensorShapeProto, TensorTypeProto,
    TypeProto, ValueInfoProto,
};

pub(crate) use read::OnnxFile;
pub(crate) use schema::{ModelProto, Note};

/// Operators as of ONNX 1.12, which runtimes since 2022 have.
const OPSET: i64 = 17;
/// The version of the format that came with it.
const IR_VERSION: i64 = 8;
/// `(batch, channels, height, width)`, normalised.
const IMAGES: &str = "images";
/// `(batch, c)`.
const FEATURES: &str = "features";

/// The network as an ONNX model, with `notes` in its metadata.
pub(crate) fn model_of(network: &ResNet, notes: Vec<Note>) -> Result<ModelProto> {
    let mut recorder = Recorder::new(network);
    let mut layers = HashMap::new();
    let features = network.record(&mut recorder, &IMAGES.to_owned(), &mut |layer, value| {
        layers.insert(value.clone(), layer.to_string());
    })?;
    layers.insert(features, FEATURES.to_owned());
    let (mut node, initializer) = recorder.finish();
    for name in node
        .iter_mut()
        .flat_map(|node| node.input.iter_mut().chain(&mut node.output))
    {
        if let Some(layer) = layers.get(name) {
            name.clone_from(layer);
        }
    }
    let named = |name: &str| DimensionProto {
        dim_param: Some(name.to_owned()),
        ..DimensionProto::default()
    };
    let fixed = |size: usize| DimensionProto {
        dim_value: Some(size as i64),
        ..DimensionProto::default()
    };
    let dim = crate::Backbone::feature_dim(network);
    let channels = fixed(network.config().channels);
    let images = [named("batch"), channels, named("height"), named("width")];
    let graph = GraphProto {
        node,
        name: network.config().arch.to_string(),
        initializer,
        input: vec![value(IMAGES, &images)],
        output: vec![value(FEATURES, &[named("batch"), fixed(dim)])],
    };
    Ok(ModelProto {
        ir_version: IR_VERSION,
        producer_name: "pirl".to_owned(),
        producer_version: env!("CARGO_PKG_VERSION").to_owned(),
        graph: Some(graph),
        opset_import: vec![OperatorSetIdProto {
            domain: String::new(),
            version: OPSET,
        }],
        metadata_props: notes,
    })
}

fn value(name: &str, dims: &[DimensionProto]) -> ValueInfoProto {
    let shape = TensorShapeProto { dim: dims.to_vec() };
    let tensor_type = TensorTypeProto {
        elem_type: FLOAT,
        shape: Some(shape),
    };
    ValueInfoProto {
        name: name.to_owned(),
        value_type: Some(TypeProto {
            tensor_type: Some(tensor_type),
        }),
    }
}

impl Note {
    pub(crate) fn new(key: &str, value: impl ToString) -> Self {
        Self {
            key: key.to_owned(),
            value: value.to_string(),
        }
    }

    pub(crate) fn precise_batch_norm(images: usize) -> Self {
        Self::new(PRECISE, images)
    }
}

impl ModelProto {
    /// How many tensors it has.
    pub(crate) fn tensors(&self) -> usize {
        self.graph
            .as_ref()
            .map_or(0, |graph| graph.initializer.len())
    }
}
