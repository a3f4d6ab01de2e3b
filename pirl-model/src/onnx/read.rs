//! The weights of an ONNX file that this crate wrote.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use prost::Message;

use super::schema::{FLOAT, GraphProto, ModelProto, TensorProto};
use super::{FEATURES, IMAGES, model_of};
use crate::engine::Norm;
use crate::error::{ModelError, Result};
use crate::resnet::{ResNet, parameter_count};
use crate::weights::{PRECISE, Shapes, infer};

/// The weights of a ResNet's graph, under torchvision's names: what was folded into convolutions is their
/// batch norms' shift, and their scales and statistics are those that change nothing.
pub(crate) struct OnnxFile {
    pub(crate) state: HashMap<String, Tensor>,
    pub(crate) precise_batch_norm: Option<usize>,
}

impl OnnxFile {
    /// Reads `bytes`, those of the file `path`: a graph that is node by node what the export of this crate
    /// makes of a network of its own.
    ///
    /// # Errors
    /// [`ModelError::Onnx`] for anything else.
    pub(crate) fn read(path: &Path, bytes: &[u8]) -> Result<Self> {
        let refused = |reason: String| ModelError::Onnx {
            path: path.to_owned(),
            reason,
        };
        let model = ModelProto::decode(bytes)
            .map_err(|error| refused(format!("it is not an ONNX file: {error}")))?;
        let precise = model.metadata_props.iter().find(|note| note.key == PRECISE);
        let precise_batch_norm = precise.and_then(|note| note.value.parse().ok());
        let Some(graph) = model.graph else {
            return Err(refused("it has no graph".to_owned()));
        };
        let tensors: Result<HashMap<&str, (Vec<usize>, &TensorProto)>, String> = graph
            .initializer
            .iter()
            .map(|tensor| Ok((&*tensor.name, (shape(tensor)?, tensor))))
            .collect();
        let tensors = tensors.map_err(refused)?;
        let shapes: Shapes = tensors
            .iter()
            .map(|(name, (shape, _))| ((*name).to_owned(), shape.clone()))
            .collect();
        let config = infer(&shapes).map_err(refused)?;
        // Before a network is made that a few names in a small file ask for.
        let (found, all) = (numbers(&graph), parameter_count(&config)?);
        if found < all / 2 {
            let network = config.network();
            return Err(refused(format!(
                "its tensors have {found} numbers, too few for a network of {network}, which has {all}"
            )));
        }
        let own = model_of(&ResNet::new(&config, 0, &Device::Cpu)?, Vec::new())?;
        compare(&graph, &own.graph.unwrap_or_default()).map_err(refused)?;
        let mut state = HashMap::new();
        for (name, (shape, tensor)) in tensors {
            let numbers = tensor.raw_data.chunks_exact(4);
            let numbers: Vec<f32> = numbers
                .filter_map(|word| Some(f32::from_le_bytes(word.try_into().ok()?)))
                .collect();
            let numbers = Tensor::from_vec(numbers, shape.as_slice(), &Device::Cpu)?;
            match name.strip_suffix(".bias") {
                None => drop(state.insert(name.to_owned(), numbers)),
                Some(conv) => {
                    let norm = norm_after(conv);
                    let all = |value: f32| Tensor::full(value, shape.as_slice(), &Device::Cpu);
                    state.insert(format!("{norm}.weight"), all(1.0)?);
                    state.insert(format!("{norm}.running_mean"), all(0.0)?);
                    state.insert(format!("{norm}.running_var"), all(1.0 - Norm::EPS)?);
                    state.insert(format!("{norm}.bias"), numbers);
                }
            }
        }
        Ok(Self {
            state,
            precise_batch_norm,
        })
    }
}

/// How many numbers the tensors of a graph have.
fn numbers(graph: &GraphProto) -> usize {
    let bytes: usize = graph
        .initializer
        .iter()
        .map(|tensor| tensor.raw_data.len())
        .sum();
    bytes / size_of::<f32>()
}

/// The name of the batch norm after the convolution `conv`.
fn norm_after(conv: &str) -> String {
    match conv.strip_suffix("downsample.0") {
        Some(block) => format!("{block}downsample.1"),
        None => conv.replace("conv", "bn"),
    }
}

/// The shape of a tensor whose numbers are in the file.
fn shape(tensor: &TensorProto) -> Result<Vec<usize>, String> {
    let sides = tensor.dims.iter().map(|&side| usize::try_from(side).ok());
    let shape: Option<Vec<usize>> = sides.collect();
    let bytes = shape.as_ref().and_then(|shape| {
        let mut sides = shape.iter();
        sides.try_fold(4usize, |bytes, &side| bytes.checked_mul(side))
    });
    match (shape, bytes) {
        (Some(shape), Some(bytes))
            if tensor.data_type == FLOAT && tensor.raw_data.len() == bytes =>
        {
            Ok(shape)
        }
        _ => Err(format!(
            "its tensor {:?} of shape {:?} has not the float32 numbers for it in raw_data, but {} bytes of type {}",
            tensor.name,
            tensor.dims,
            tensor.raw_data.len(),
            tensor.data_type
        )),
    }
}

/// Whether a graph is that of `own`, but for its numbers.
fn compare(found: &GraphProto, own: &GraphProto) -> Result<(), String> {
    const ONLY: &str = "only what `pirl export --format onnx` writes is read";
    for (own, at) in own.node.iter().zip(0..) {
        match found.node.get(at) {
            Some(found) if found == own => {}
            Some(found) => {
                return Err(format!(
                    "node {at} of its graph is {} {:?}, not {} {:?} as in the network it looks like: {ONLY}",
                    found.op_type, found.name, own.op_type, own.name
                ));
            }
            None => return Err(format!("its graph ends before {:?}: {ONLY}", own.name)),
        }
    }
    let names = |graph: &GraphProto| -> Vec<(String, Vec<i64>)> {
        let tensors = graph.initializer.iter();
        tensors
            .map(|tensor| (tensor.name.clone(), tensor.dims.clone()))
            .collect()
    };
    let ends = |graph: &GraphProto| {
        let name = |values: &[super::ValueInfoProto]| -> Vec<String> {
            values.iter().map(|value| value.name.clone()).collect()
        };
        (name(&graph.input), name(&graph.output))
    };
    let wanted = (vec![IMAGES.to_owned()], vec![FEATURES.to_owned()]);
    if found.node.len() != own.node.len() || names(found) != names(own) || ends(found) != wanted {
        return Err(format!(
            "its graph has other nodes, tensors, inputs or outputs: {ONLY}"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use candle_core::{D, IndexOp};

    use super::*;
    use crate::config::{Arch, ModelConfig, Stem};
    use crate::onnx::schema::{AttributeProto, NodeProto, Note};
    use crate::ops::reference;
    use crate::trainable::Trainable;
    use crate::{Backbone, Mode};

    /// A network whose batch norms have statistics, scales and shifts of their own.
    fn network(arch: Arch, stem: Stem) -> ResNet {
        let config = ModelConfig {
            arch,
            stem,
            width: 0.25,
            ..ModelConfig::default()
        };
        let network = ResNet::new(&config, 1, &Device::Cpu).unwrap();
        let state = network.state().unwrap();
        let changed = state.into_iter().zip(0..).map(|((name, tensor), seed)| {
            let noise = benches::fill(seed, tensor.elem_count());
            let changed = match tensor.rank() {
                1 => {
                    let noise = Tensor::from_vec(noise, tensor.shape(), &Device::Cpu).unwrap();
                    (tensor + (noise * 0.2).unwrap()).unwrap()
                }
                _ => tensor,
            };
            (name, changed)
        });
        network.load(&changed.collect()).unwrap();
        network
    }

    fn images() -> Tensor {
        Tensor::from_vec(
            benches::fill(9, 2 * 3 * 33 * 40),
            (2, 3, 33, 40),
            &Device::Cpu,
        )
        .unwrap()
    }

    /// Sums in another order, in maps whose numbers differ much in size.
    fn assert_close(a: &Tensor, b: &Tensor) {
        assert_eq!(a.dims(), b.dims());
        let largest = |x: &Tensor| {
            let largest = x.abs().unwrap().max_all().unwrap();
            largest.to_scalar::<f32>().unwrap()
        };
        let (difference, size) = (largest(&(a - b).unwrap()), largest(b));
        assert!(
            size > 0.0 && difference < 1e-5 * size,
            "{difference} of {size}"
        );
    }

    /// The graph's output, node by node as <https://onnx.ai/onnx/operators> describes them.
    fn run(graph: &GraphProto, images: &Tensor) -> HashMap<String, Tensor> {
        let mut values = HashMap::from([(IMAGES.to_owned(), images.clone())]);
        for tensor in &graph.initializer {
            let numbers = tensor.raw_data.chunks(4);
            let numbers: Vec<f32> = numbers
                .map(|word| f32::from_le_bytes(word.try_into().unwrap()))
                .collect();
            let tensor_shape = shape(tensor).unwrap();
            let numbers = Tensor::from_vec(numbers, tensor_shape, &Device::Cpu).unwrap();
            assert!(values.insert(tensor.name.clone(), numbers).is_none());
        }
        let ints = |node: &NodeProto, name: &str| -> Vec<i64> {
            let found = node
                .attribute
                .iter()
                .find(|attribute| attribute.name == name);
            let AttributeProto { i, ints, .. } = found.unwrap();
            i.iter().chain(ints).copied().collect()
        };
        for node in &graph.node {
            let input = |at: usize| &values[&node.input[at]];
            let window = |node| {
                let (kernel, strides, pads) = (
                    ints(node, "kernel_shape"),
                    ints(node, "strides"),
                    ints(node, "pads"),
                );
                assert!(kernel[0] == kernel[1] && strides[0] == strides[1]);
                assert!(pads.len() == 4 && pads.iter().all(|pad| *pad == pads[0]));
                (kernel[0] as usize, strides[0] as usize, pads[0] as usize)
            };
            let output = match node.op_type.as_str() {
                "Conv" => {
                    let (kernel, stride, padding) = window(node);
                    let bias = input(2).reshape((1, (), 1, 1)).unwrap();
                    assert_eq!(input(1).dim(D::Minus1).unwrap(), kernel);
                    let out = reference::conv2d(input(0), input(1), stride, padding).unwrap();
                    out.broadcast_add(&bias).unwrap()
                }
                "Relu" => reference::relu(input(0)).unwrap(),
                "Add" => (input(0) + input(1)).unwrap(),
                "MaxPool" => {
                    let (kernel, stride, padding) = window(node);
                    reference::max_pool2d(input(0), kernel, stride, padding).unwrap()
                }
                "GlobalAveragePool" => input(0).mean_keepdim(2).unwrap().mean_keepdim(3).unwrap(),
                "Flatten" => {
                    assert_eq!(ints(node, "axis"), [1]);
                    input(0).flatten_from(1).unwrap()
                }
                other => panic!("{other}"),
            };
            assert!(
                values.insert(node.output[0].clone(), output).is_none(),
                "{node:?}"
            );
        }
        values
    }

    #[test]
    fn a_graph_computes_what_its_network_does_and_comes_back_as_it() {
        for (arch, stem) in [
            (Arch::Resnet10, Stem::Medium),
            (Arch::Resnet18, Stem::Imagenet),
            (Arch::Resnet50, Stem::Small),
        ] {
            let network = network(arch, stem);
            let model = model_of(&network, vec![Note::precise_batch_norm(80)]).unwrap();
            let values = run(model.graph.as_ref().unwrap(), &images());
            let features = network.forward(&images(), Mode::Eval).unwrap();
            assert_close(&values[FEATURES], &features);
            let layers = network.layers();
            for (layer, map) in network.feature_maps(&images(), &layers[..5]).unwrap() {
                assert_close(&values[layer.as_str()], &map);
            }

            let file = OnnxFile::read(Path::new("a.onnx"), &model.encode_to_vec()).unwrap();
            assert_eq!(file.precise_batch_norm, Some(80));
            let back = ResNet::new(network.config(), 2, &Device::Cpu).unwrap();
            back.load(&file.state).unwrap().ensure_whole().unwrap();
            assert_close(&back.forward(&images(), Mode::Eval).unwrap(), &features);
            // The numbers of a file are taken, and not those that the graph was compared with.
            let weight = |network: &ResNet| network.parameters().get("conv1.weight").unwrap();
            let first = |network| {
                weight(network)
                    .i((0, 0, 0))
                    .unwrap()
                    .to_vec1::<f32>()
                    .unwrap()
            };
            assert_ne!(
                first(&back),
                first(&ResNet::new(network.config(), 0, &Device::Cpu).unwrap())
            );
        }
    }

    #[test]
    fn another_graph_is_refused() {
        let whole = model_of(&network(Arch::Resnet10, Stem::Small), Vec::new()).unwrap();
        let refused = |change: &dyn Fn(&mut GraphProto), wanted: &str| {
            let mut model = whole.clone();
            change(model.graph.as_mut().unwrap());
            let bytes = model.encode_to_vec();
            let error = OnnxFile::read(Path::new("a.onnx"), &bytes)
                .err()
                .unwrap()
                .to_string();
            assert!(
                error.contains("a.onnx") && error.contains(wanted),
                "{error}"
            );
        };
        refused(
            &|graph| graph.node[1].op_type = "Sigmoid".to_owned(),
            "node 1 of its graph is Sigmoid",
        );
        refused(&|graph| graph.node[0].attribute[1].ints[0] = 2, "node 0");
        refused(&|graph| drop(graph.node.pop()), "ends before");
        refused(
            &|graph| graph.node.push(graph.node[0].clone()),
            "other nodes",
        );
        refused(&|graph| graph.output.clear(), "other nodes");
        refused(
            &|graph| graph.initializer[0].raw_data.truncate(8),
            "conv1.weight",
        );
        refused(&|graph| graph.initializer[0].data_type = 10, "of type 10");
        refused(&|graph| graph.initializer[0].dims[0] = -1, "[-1, 3, 3, 3]");
        refused(
            &|graph| graph.initializer[0].dims[0] = i64::MAX,
            "conv1.weight",
        );
        refused(&|graph| graph.initializer.clear(), "resnet10");
        refused(
            &|graph| {
                graph
                    .initializer
                    .retain(|tensor| tensor.name.ends_with("conv1.weight"));
                graph
                    .initializer
                    .retain(|tensor| !tensor.name.starts_with("layer4"));
                let mut last = graph.initializer[0].clone();
                last.name = "layer4.0.conv1.weight".to_owned();
                graph.initializer.push(last);
            },
            "too few",
        );
        let read = |bytes: &[u8]| {
            OnnxFile::read(Path::new("a.onnx"), bytes)
                .err()
                .unwrap()
                .to_string()
        };
        assert!(read(b"PK\x03\x04").contains("not an ONNX file"));
        assert!(read(b"").contains("no graph"));
        let bytes = whole.encode_to_vec();
        for end in (0..bytes.len()).step_by(bytes.len() / 50) {
            read(&bytes[..end]);
        }
    }
}
