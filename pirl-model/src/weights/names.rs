//! What tensors are called: where in a file a backbone lies, which network it is, and detectron2's
//! names for it.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::{Arch, MAX_CHANNELS, ModelConfig, Stem};

/// Names and shapes of a state dict.
pub(crate) type Shapes = BTreeMap<String, Vec<usize>>;

/// Where the tensors of a backbone lie among others.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// What their names begin with; empty, or ending in a dot.
    pub(super) prefix: String,
    /// Whose names they are after that.
    pub(super) names: Names,
}

/// Whose names tensors have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Names {
    /// Torchvision's, and timm's: `layer1.0.conv1.weight`.
    Torchvision,
    /// Detectron2's, as its R-50.pkl has them: `res2.0.conv1.weight`, `res2.0.shortcut.norm.running_var`.
    Detectron2,
    /// Those of Hugging Face's transformers: `encoder.stages.0.layers.0.layer.0.convolution.weight`.
    HuggingFace,
}

impl Names {
    const ALL: [Self; 3] = [Self::Torchvision, Self::Detectron2, Self::HuggingFace];

    /// The name of a tensor that every ResNet has.
    fn sign(self) -> &'static str {
        match self {
            Self::Torchvision => "layer1.0.conv1.weight",
            Self::Detectron2 => "res2.0.conv1.weight",
            Self::HuggingFace => "encoder.stages.0.layers.0.layer.0.convolution.weight",
        }
    }

    /// The name that torchvision's `name` has there; `None` if it is no part of a backbone.
    pub(super) fn of_torchvision(self, name: &str) -> Option<String> {
        match self {
            Self::Torchvision => is_of_backbone(name).then(|| name.to_owned()),
            Self::Detectron2 => to_detectron2(name),
            Self::HuggingFace => to_hugging_face(name),
        }
    }

    /// The name that `name` has at torchvision's; `None` if it is no part of a backbone.
    fn to_torchvision(self, name: &str) -> Option<String> {
        let name = match self {
            Self::Torchvision => Some(name.to_owned()),
            Self::Detectron2 => from_detectron2(name),
            Self::HuggingFace => from_hugging_face(name),
        }?;
        is_of_backbone(&name).then_some(name)
    }
}

impl Place {
    /// Torchvision's name of the tensor `name`, if it is one of this backbone.
    pub(super) fn torchvision_name(&self, name: &str) -> Option<String> {
        self.names.to_torchvision(name.strip_prefix(&self.prefix)?)
    }
}

/// Parts of names of networks that follow another's weights, of which files hold a copy: MoCo's and
/// PyContrast's key encoders, and others' teachers.
const FOLLOWERS: [&str; 5] = ["encoder_k", "model_ema", "momentum", "teacher", "target"];

/// Finds the one backbone in a file, whatever its names begin with, or the one that they begin with
/// `wanted`; returns it and what the names of others in the file begin with. An error says, as the end of
/// a message, what was found instead.
pub(super) fn find(names: &Shapes, wanted: Option<&str>) -> Result<(Place, Vec<String>), String> {
    let ending = |end: &str| -> BTreeSet<String> {
        let prefix = |name: &String| name.strip_suffix(end).map(str::to_owned);
        let prefixes = names.keys().filter_map(prefix);
        prefixes
            .filter(|p| p.is_empty() || p.ends_with('.'))
            .collect()
    };
    let place = |names: Names| {
        let places = ending(names.sign()).into_iter();
        places.map(move |prefix| Place { prefix, names })
    };
    let mut places: Vec<_> = Names::ALL.into_iter().flat_map(place).collect();
    let mut others: Vec<String> = places.iter().map(|place| place.prefix.clone()).collect();
    let mut without = |place: &Place| {
        others.retain(|prefix| *prefix != place.prefix);
        std::mem::take(&mut others)
    };
    if let Some(wanted) = wanted {
        let dotted = format!("{}.", wanted.trim_end_matches('.'));
        let is_wanted = |place: &Place| place.prefix == wanted || place.prefix == dotted;
        return match places.iter().position(is_wanted) {
            Some(at) => {
                let place = places.swap_remove(at);
                let others = without(&place);
                Ok((place, others))
            }
            None => Err(format!(
                "no ResNet is in it under {wanted}, only under {}",
                others.join(", ")
            )),
        };
    }
    if places.len() > 1 {
        let leads = |place: &Place| !FOLLOWERS.iter().any(|part| place.prefix.contains(part));
        if places.iter().any(leads) {
            places.retain(leads);
        }
    }
    match places.pop() {
        Some(place) if places.is_empty() => {
            let others = without(&place);
            Ok((place, others))
        }
        None => {
            let some: Vec<&str> = names.keys().take(3).map(String::as_str).collect();
            Err(format!(
                "no ResNet is in it: none of its {} tensors ({}, ...) has a name that ends in \
                 layer1.0.conv1.weight",
                names.len(),
                some.join(", ")
            ))
        }
        Some(last) => {
            places.push(last);
            let prefixes: Vec<_> = places.iter().map(|place| place.prefix.as_str()).collect();
            Err(format!(
                "several ResNets are in it, under {}; say which is meant (--weights-prefix)",
                prefixes.join(", ")
            ))
        }
    }
}

fn is_of_backbone(name: &str) -> bool {
    let part = name.split('.').next().unwrap_or_default();
    ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4"].contains(&part)
}

/// The network whose state dict has these names and shapes, as far as they tell. An error says, as
/// the end of a message, what none of this crate's networks has.
pub(crate) fn infer(state: &Shapes) -> Result<ModelConfig, String> {
    let shape = |name: &str| state.get(name).map(Vec::as_slice);
    let blocks = [1, 2, 3, 4].map(|stage| {
        (0..)
            .take_while(|b| shape(&format!("layer{stage}.{b}.conv1.weight")).is_some())
            .count()
    });
    let bottleneck = shape("layer1.0.conv3.weight").is_some();
    let archs = [
        Arch::Resnet10,
        Arch::Resnet18,
        Arch::Resnet34,
        Arch::Resnet50,
        Arch::Resnet101,
    ];
    let arch = archs
        .into_iter()
        .find(|arch| arch.blocks() == blocks && arch.bottleneck() == bottleneck)
        .ok_or_else(|| {
            let kind = if bottleneck { "bottleneck" } else { "basic" };
            format!(
                "a ResNet with {blocks:?} {kind} blocks is none of resnet10, 18, 34, 50 and 101"
            )
        })?;
    let ((width, channels), stem) = match shape("conv1.weight") {
        Some(&[width, channels @ 1..=MAX_CHANNELS, 7, 7]) => ((width, channels), Stem::Imagenet),
        Some(&[width, channels @ 1..=MAX_CHANNELS, 5, 5]) => ((width, channels), Stem::Medium),
        Some(&[width, channels @ 1..=MAX_CHANNELS, 3, 3]) => ((width, channels), Stem::Small),
        Some(other) => {
            return Err(format!(
                "conv1.weight has shape {other:?}, but a stem has 1 to {MAX_CHANNELS} input channels \
                 and a kernel of 7x7, 5x5 or 3x3"
            ));
        }
        None => {
            return Err(
                "it has no conv1.weight: a deep stem (ResNet-C, -D) is not supported".to_owned(),
            );
        }
    };
    let config = ModelConfig {
        arch,
        width: width as f64 / 64.0,
        stem,
        channels,
        ..ModelConfig::default()
    };
    config.stem_channels().map_err(|error| error.to_string())?;
    match shape("layer1.0.conv1.weight") {
        Some(&[planes, ..]) if planes != width => Err(format!(
            "layer1.0.conv1.weight has {planes} output channels behind a stem of {width}: wide \
             and grouped ResNets (wide_resnet, resnext) are not supported"
        )),
        _ => Ok(config),
    }
}

/// Detectron2's name of a tensor of a backbone, as its R-50.pkl has it: `stem.conv1.weight`,
/// `res2.0.conv1.norm.running_var`, `res2.0.shortcut.weight`. `None`: it is no part of one.
fn to_detectron2(name: &str) -> Option<String> {
    let parts: Vec<&str> = name.split('.').collect();
    Some(match parts[..] {
        ["conv1", field] => format!("stem.conv1.{field}"),
        ["bn1", field] => format!("stem.conv1.norm.{field}"),
        [layer, block, ref unit @ .., field] => {
            let stage: usize = layer.strip_prefix("layer")?.parse().ok()?;
            let unit = match unit {
                ["downsample", "0"] => "shortcut".to_owned(),
                ["downsample", "1"] => "shortcut.norm".to_owned(),
                [unit] => match unit.strip_prefix("bn") {
                    Some(number) => format!("conv{number}.norm"),
                    None => (*unit).to_owned(),
                },
                _ => return None,
            };
            format!("res{}.{block}.{unit}.{field}", stage + 1)
        }
        _ => return None,
    })
}

fn from_detectron2(name: &str) -> Option<String> {
    let parts: Vec<&str> = name.split('.').collect();
    Some(match parts[..] {
        ["stem", "conv1", "norm", field] => format!("bn1.{field}"),
        ["stem", "conv1", field] => format!("conv1.{field}"),
        [res, block, unit, ref rest @ .., field] => {
            let stage: usize = res.strip_prefix("res")?.parse().ok()?;
            let unit = match (unit, rest) {
                ("shortcut", []) => "downsample.0".to_owned(),
                ("shortcut", ["norm"]) => "downsample.1".to_owned(),
                (unit, []) => unit.to_owned(),
                (unit, ["norm"]) => format!("bn{}", unit.strip_prefix("conv")?),
                _ => return None,
            };
            format!("layer{}.{block}.{unit}.{field}", stage.checked_sub(1)?)
        }
        _ => return None,
    })
}

/// Transformers' name of a tensor of a backbone: `embedder.embedder.convolution.weight`,
/// `encoder.stages.0.layers.0.layer.1.normalization.bias`, `...shortcut.convolution.weight`. `None`: it is no
/// part of one.
fn to_hugging_face(name: &str) -> Option<String> {
    let parts: Vec<&str> = name.split('.').collect();
    Some(match parts[..] {
        ["conv1", field] => format!("embedder.embedder.convolution.{field}"),
        ["bn1", field] => format!("embedder.embedder.normalization.{field}"),
        [layer, block, ref unit @ .., field] => {
            let stage: usize = layer.strip_prefix("layer")?.parse().ok()?;
            let number = |number: &str| number.parse::<usize>().ok()?.checked_sub(1);
            let unit = match unit {
                ["downsample", "0"] => "shortcut.convolution".to_owned(),
                ["downsample", "1"] => "shortcut.normalization".to_owned(),
                [unit] => match (unit.strip_prefix("conv"), unit.strip_prefix("bn")) {
                    (Some(conv), _) => format!("layer.{}.convolution", number(conv)?),
                    (_, Some(norm)) => format!("layer.{}.normalization", number(norm)?),
                    _ => return None,
                },
                _ => return None,
            };
            format!(
                "encoder.stages.{}.layers.{block}.{unit}.{field}",
                stage.checked_sub(1)?
            )
        }
        _ => return None,
    })
}

fn from_hugging_face(name: &str) -> Option<String> {
    let parts: Vec<&str> = name.split('.').collect();
    let next = |number: &str| number.parse::<usize>().ok()?.checked_add(1);
    Some(match parts[..] {
        ["embedder", "embedder", "convolution", field] => format!("conv1.{field}"),
        ["embedder", "embedder", "normalization", field] => format!("bn1.{field}"),
        [
            "encoder",
            "stages",
            stage,
            "layers",
            block,
            ref unit @ ..,
            field,
        ] => {
            let unit = match unit {
                ["shortcut", "convolution"] => "downsample.0".to_owned(),
                ["shortcut", "normalization"] => "downsample.1".to_owned(),
                ["layer", unit, "convolution"] => format!("conv{}", next(unit)?),
                ["layer", unit, "normalization"] => format!("bn{}", next(unit)?),
                _ => return None,
            };
            format!("layer{}.{block}.{unit}.{field}", next(stage)?)
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::resnet::ResNet;
    use crate::trainable::Trainable;

    fn shapes(config: &ModelConfig) -> Shapes {
        let network = ResNet::new(config, 0, &Device::Cpu).unwrap();
        let state = network.state().unwrap();
        let shape = |(name, tensor): (String, candle_core::Tensor)| (name, tensor.dims().to_vec());
        state.into_iter().map(shape).collect()
    }

    fn under(shapes: &Shapes, prefix: &str) -> Shapes {
        let renamed =
            |(name, shape): (&String, &Vec<usize>)| (format!("{prefix}{name}"), shape.clone());
        shapes.iter().map(renamed).collect()
    }

    #[test]
    fn a_network_is_told_from_its_shapes() {
        for arch in [
            Arch::Resnet18,
            Arch::Resnet34,
            Arch::Resnet50,
            Arch::Resnet101,
        ] {
            for (width, stem) in [(0.25, Stem::Small), (0.5, Stem::Imagenet)] {
                let config = ModelConfig {
                    arch,
                    width,
                    stem,
                    ..ModelConfig::default()
                };
                assert_eq!(infer(&shapes(&config)).unwrap(), config);
            }
        }
    }

    #[test]
    fn other_networks_are_refused_by_what_they_have() {
        let quarter = ModelConfig {
            width: 0.25,
            ..ModelConfig::default()
        };
        let whole = shapes(&quarter);
        let refused = |change: &dyn Fn(&mut Shapes)| {
            let mut changed = whole.clone();
            change(&mut changed);
            infer(&changed).unwrap_err()
        };
        let deep = refused(&|s| drop(s.remove("conv1.weight")));
        assert!(deep.contains("deep stem"), "{deep}");
        let short = refused(&|s| drop(s.remove("layer3.5.conv1.weight")));
        assert!(short.contains("[3, 4, 5, 3]"), "{short}");
        let wide = refused(&|s| drop(s.insert("layer1.0.conv1.weight".into(), vec![32, 16, 1, 1])));
        assert!(
            wide.contains("wide_resnet") && wide.contains("32"),
            "{wide}"
        );
        let odd = refused(&|s| drop(s.insert("conv1.weight".into(), vec![16, 17, 7, 7])));
        assert!(odd.contains("[16, 17, 7, 7]"), "{odd}");
        let mut five = whole.clone();
        five.insert("conv1.weight".into(), vec![16, 5, 7, 7]);
        let five = infer(&five).unwrap();
        assert_eq!((five.channels, five.width), (5, 0.25));
        assert!(five.network().ends_with("data.channels = 5"));
    }

    #[test]
    fn prefixes_are_found_and_followers_passed_over() {
        let own = shapes(&ModelConfig {
            arch: Arch::Resnet18,
            width: 0.25,
            ..ModelConfig::default()
        });
        let found = |prefixes: &[&str]| {
            let all = prefixes.iter().flat_map(|prefix| under(&own, prefix));
            find(&all.collect(), None).map(|(place, _)| place)
        };
        for prefix in [
            "",
            "module.",
            "classy_state_dict.base_model.model.trunk._feature_blocks.",
            "model.module.encoder.",
        ] {
            assert_eq!(found(&[prefix]).unwrap().prefix, prefix);
        }
        let moco = found(&[
            "state_dict.module.encoder_q.",
            "state_dict.module.encoder_k.",
        ]);
        assert_eq!(moco.unwrap().prefix, "state_dict.module.encoder_q.");
        let alone = found(&["module.encoder_k."]);
        assert_eq!(alone.unwrap().prefix, "module.encoder_k.");
        let two = found(&["a.", "b."]).unwrap_err();
        assert!(two.contains("a., b."), "{two}");
        let both: Shapes = ["student.", "teacher."]
            .iter()
            .flat_map(|prefix| under(&own, prefix))
            .collect();
        for (wanted, prefix, other) in [
            (None, "student.", "teacher."),
            (Some("teacher"), "teacher.", "student."),
            (Some("teacher."), "teacher.", "student."),
        ] {
            let (place, others) = find(&both, wanted).unwrap();
            assert_eq!(
                (place.prefix.as_str(), others),
                (prefix, vec![other.to_owned()])
            );
        }
        let neither = find(&both, Some("pupil")).unwrap_err();
        assert!(neither.contains("student., teacher."), "{neither}");
        let none = find(&Shapes::from([("x.weight".to_owned(), vec![1])]), None).unwrap_err();
        assert!(none.contains("x.weight"), "{none}");
    }

    #[test]
    fn detectron2s_names_go_there_and_back() {
        for (torchvision, detectron2) in [
            ("conv1.weight", "stem.conv1.weight"),
            ("bn1.running_var", "stem.conv1.norm.running_var"),
            ("layer1.0.downsample.0.weight", "res2.0.shortcut.weight"),
            ("layer1.0.downsample.1.bias", "res2.0.shortcut.norm.bias"),
            ("layer4.2.conv3.weight", "res5.2.conv3.weight"),
            (
                "layer3.5.bn2.num_batches_tracked",
                "res4.5.conv2.norm.num_batches_tracked",
            ),
        ] {
            assert_eq!(to_detectron2(torchvision).unwrap(), detectron2);
            assert_eq!(from_detectron2(detectron2).unwrap(), torchvision);
        }
        for name in shapes(&ModelConfig::default()).keys() {
            let there = to_detectron2(name).unwrap();
            assert_eq!(&from_detectron2(&there).unwrap(), name);
        }
        for other in [
            "fc.weight",
            "fc1000.weight",
            "res0.0.conv1.weight",
            "res2",
            "stem",
            "",
        ] {
            let place = Place {
                prefix: String::new(),
                names: Names::Detectron2,
            };
            assert_eq!(place.torchvision_name(other), None, "{other}");
        }
    }
}
