//! The page that goes with exported weights: what they are, how they are used, what they are worth.

use std::path::Path;

use askama::Template;
use pirl_data::EvalView;
use serde_json::Value;

use crate::error::{ReportError, Result};

/// A model card in Markdown, with the front matter that Hugging Face reads.
#[derive(Clone, Debug, Template)]
#[template(path = "model_card.md", escape = "none")]
pub struct ModelCard<'a> {
    /// The heading.
    pub title: &'a str,
    /// The format of the export.
    pub format: &'a str,
    /// The network, in words.
    pub network: &'a str,
    /// Where the weights are from.
    pub weights: &'a str,
    /// On how many plain images its batch-norm statistics were computed; `None` if they are those of
    /// training.
    pub precise_batch_norm: Option<usize>,
    /// Lines of Python.
    pub usage: &'a str,
    /// How images are seen.
    pub view: EvalView,
    /// What evaluations found.
    pub results: &'a [CardResult],
    /// The settings of its pre-training as TOML, of a run.
    pub recipe: Option<&'a str>,
}

impl ModelCard<'_> {
    /// The library that reads the weights, by Hugging Face's name for it.
    fn library(&self) -> Option<&'static str> {
        match self.format {
            "hugging-face" => Some("transformers"),
            "timm" => Some("timm"),
            _ => None,
        }
    }

    /// The page.
    ///
    /// # Errors
    /// [`ReportError::Page`].
    pub fn to_markdown(&self) -> Result<String> {
        Ok(self.render()?)
    }
}

/// A row of the table of results.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CardResult {
    pub(crate) evaluation: String,
    pub(crate) figures: String,
    /// Of raw pixels, by the same evaluation; "-" where it was not run on them.
    pub(crate) pixels: String,
    /// Of the untrained network.
    pub(crate) untrained: String,
    pub(crate) train: String,
    pub(crate) test: String,
}

impl CardResult {
    /// From the file `path`, the `result.json` of an evaluation of the weights with this fingerprint.
    ///
    /// # Errors
    /// [`ReportError::Read`], [`ReportError::NoResult`]; [`ReportError::OtherWeights`].
    pub fn read(path: &Path, weights: &str) -> Result<Self> {
        let failed = |source: std::io::Error| ReportError::Read {
            path: path.to_owned(),
            source,
        };
        let text = std::fs::read(path).map_err(failed)?;
        let result: Value = serde_json::from_slice(&text).map_err(|error| failed(error.into()))?;
        let row = Self::of(path, &result)?;
        let found = &result["weights"];
        if found["fingerprint"] == weights {
            return Ok(row);
        }
        Err(ReportError::OtherWeights {
            path: path.to_owned(),
            found: found["path"].to_string(),
        })
    }

    /// From the `result.json` of an evaluation; `path` is its file, for errors.
    ///
    /// # Errors
    /// [`ReportError::NoResult`] for another JSON document.
    pub fn of(path: &Path, result: &Value) -> Result<Self> {
        let read = || {
            let (evaluation, figures) = found(result)?;
            let baseline = |name: &str| {
                let found = found(&result["baselines"][name]);
                found.map_or_else(|| "-".to_owned(), |(_, figures)| figures)
            };
            let images = |set: &str| Some(format!("{} images", result[set]["images"].as_u64()?));
            Some(Self {
                evaluation,
                figures,
                pixels: baseline("pixels"),
                untrained: baseline("untrained"),
                train: images("train")?,
                test: images("test")?,
            })
        };
        read().ok_or_else(|| ReportError::NoResult {
            path: path.to_owned(),
        })
    }
}

/// What the `result.json` of an evaluation, or of a baseline in it, has measured, and its figures.
fn found(result: &Value) -> Option<(String, String)> {
    let number = |value: &Value| value.as_f64();
    let figure = |name: &str, value: &Value| Some(format!("{name} {:.1}", number(value)?));
    let found = if result["ap50"].is_number() {
        let names = [("AP", "ap"), ("AP50", "ap50"), ("AP75", "ap75")];
        let figures = names.map(|(name, key)| figure(name, &result[key]));
        let figures: Option<Vec<_>> = figures.into_iter().collect();
        ("Faster R-CNN".to_owned(), figures?.join(", "))
    } else if result["map"].is_number() {
        let layer = result["best"]["layer"].as_str()?;
        (format!("SVMs on {layer}"), figure("mAP", &result["map"])?)
    } else if let Some(shots) = result["shots"].as_object() {
        let learner = match result["method"].as_str()? {
            "svm" => "SVMs",
            "linear" => "linear classifiers",
            _ => "nearest neighbours",
        };
        let shots = shots.iter();
        let shots = shots.map(|(k, found)| Some((k.parse::<usize>().ok()?, found)));
        let mut shots: Vec<(usize, &Value)> = shots.collect::<Option<_>>()?;
        shots.sort_by_key(|(k, _)| *k);
        let figures = shots
            .into_iter()
            .map(|(k, found)| figure(&format!("{k} labels"), &found["chosen"]["mean"]));
        let figures: Vec<String> = figures.collect::<Option<_>>()?;
        let metric = match result["metric"].as_str()? {
            "map" => "mAP",
            _ => "top-1",
        };
        (
            format!("{learner} on a few labels of each class, {metric}"),
            figures.join(", "),
        )
    } else if let Some(fraction) = number(&result["label_fraction"]) {
        let what = format!("fine-tuned on {}% of the labels", 100.0 * fraction);
        (what, figure("top-1", &result["top1"])?)
    } else {
        let chosen = match &result["chosen"] {
            Value::Null => &result["best"],
            chosen => chosen,
        };
        let layer = chosen["layer"].as_str()?;
        let what = match chosen["k"].as_u64().or(result["k"].as_u64()) {
            Some(k) => format!("{k} nearest neighbours on {layer}"),
            None => format!("linear classifier on {layer}"),
        };
        (what, figure("top-1", &chosen["top1"])?)
    };
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_card_has_a_row_for_each_result_and_the_recipe() {
        let sets = json!({ "train": { "images": 100 }, "test": { "images": 20 } });
        let rows = [
            (
                json!({
                    "chosen": { "layer": "res4", "top1": 62.84, "lr": 0.1 },
                    "best": { "layer": "res5", "top1": 63.0 },
                    "baselines": {
                        "pixels": { "chosen": { "layer": "pixels", "top1": 39.4 } },
                        "untrained": { "chosen": { "layer": "res2", "top1": 39.0 } },
                    },
                }),
                [
                    "linear classifier on res4",
                    "top-1 62.8 | top-1 39.4 | top-1 39.0",
                ],
            ),
            (
                json!({ "chosen": null, "best": { "layer": "res5", "top1": 63.0 } }),
                ["linear classifier on res5", "top-1 63.0"],
            ),
            (
                json!({ "top1": 61.0, "k": 20, "chosen": { "layer": "res5", "k": 10, "top1": 60.0 } }),
                ["10 nearest neighbours on res5", "top-1 60.0"],
            ),
            (
                json!({ "label_fraction": 0.01, "top1": 40.0, "top5": 80.0 }),
                ["fine-tuned on 1% of the labels", "top-1 40.0"],
            ),
            (
                json!({ "ap": 40.0, "ap50": 70.0, "ap75": 42.0 }),
                ["Faster R-CNN", "AP 40.0, AP50 70.0, AP75 42.0"],
            ),
            (
                json!({ "map": 80.0, "best": { "layer": "res5", "map": 80.0 } }),
                ["SVMs on res5", "mAP 80.0"],
            ),
            (
                json!({
                    "method": "svm",
                    "metric": "top1",
                    "shots": { "16": { "chosen": { "mean": 50.0 } }, "2": { "chosen": { "mean": 20.0 } } },
                }),
                [
                    "SVMs on a few labels of each class, top-1",
                    "2 labels 20.0, 16 labels 50.0",
                ],
            ),
        ];
        let results: Vec<CardResult> = rows
            .iter()
            .map(|(result, _)| {
                let mut result = result.clone();
                result["train"] = sets["train"].clone();
                result["test"] = sets["test"].clone();
                CardResult::of(Path::new("result.json"), &result).unwrap()
            })
            .collect();
        let card = ModelCard {
            title: "resnet18 of runs/photos",
            format: "hugging-face",
            network: "model.arch = resnet18",
            weights: "runs/photos",
            precise_batch_norm: Some(80),
            usage: "model = <ResNetModel>",
            view: EvalView {
                resize: 256,
                crop: 224,
                stretch: false,
                mean: vec![0.5; 3],
                std: vec![0.25; 3],
            },
            results: &results,
            recipe: Some("seed = 7"),
        };
        let text = card.to_markdown().unwrap();
        assert!(
            text.starts_with("---\nlibrary_name: transformers\npipeline_tag:"),
            "{text}"
        );
        for (_, [evaluation, figures]) in rows {
            let figures = match figures.contains(" | ") {
                true => figures.to_owned(),
                false => format!("{figures} | - | -"),
            };
            let row = format!("\n| {evaluation} | {figures} | 100 images | 20 images |\n");
            assert!(text.contains(&row), "{row}: {text}");
        }
        for part in [
            "model = <ResNetModel>\n```",
            "those of 80 plain\nimages",
            "mean [0.5, 0.5, 0.5]",
            "```toml\nseed = 7\n```",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let plain = ModelCard {
            format: "onnx",
            precise_batch_norm: None,
            results: &[],
            recipe: None,
            ..card
        };
        let text = plain.to_markdown().unwrap();
        assert!(
            text.starts_with("---\npipeline_tag:") && text.contains("None was given"),
            "{text}"
        );
        assert!(
            !text.contains("Recipe") && !text.contains("PIRL ("),
            "{text}"
        );
    }

    #[test]
    fn other_documents_are_refused_by_name() {
        for other in [
            json!({}),
            json!([1]),
            json!({ "chosen": { "layer": "res5", "top1": 1.0 } }),
        ] {
            let error = CardResult::of(Path::new("a/b.json"), &other).unwrap_err();
            assert!(error.to_string().contains("a/b.json"), "{error}");
        }
    }
}
