//! `pirl eval`: what a backbone is worth, by the standard protocols.

mod detect;
mod features;
mod finetune;
mod low_shot;
mod svm;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use pirl_data::{ImageView, Pack, ViewConfig};
use pirl_eval::{Classification, Dataset, Extraction, Protocol, check_packs, weights_fingerprint};
use pirl_model::ResNet;
use pirl_recipes::{BatchNormStatistics, Recipe};
use pirl_report::ClassesReport;
use pirl_train::{BoxError, Identity, Training};
use serde::Serialize;
use serde_json::{Value, json};

use crate::args::{Eval, EvalArgs, EvalCommand};
use crate::output::{print, print_json, write_result};
use crate::ranks::{Company, share};
use crate::run_dir::RunDir;
use crate::session::{Session, nothing};
use crate::weights::Weights;
use crate::{device, weights};

pub(crate) use features::recompute_batch_norm;

/// What is kept for the test of images that come without one, the same in every evaluation.
const TEST_SHARE: f64 = 0.2;
const TEST_SEED: u64 = 0x7465_7374;

/// Any of them, by all ranks.
pub(crate) fn run(args: &Eval) -> Result<()> {
    share(args.rank_timeout, |company| match &args.command {
        EvalCommand::Linear(args) => features::linear(args, company),
        EvalCommand::Knn(args) => features::knn(args, company),
        EvalCommand::Svm(args) => svm::svm(args, company),
        EvalCommand::LowShot(args) => low_shot::low_shot(args, company),
        EvalCommand::Finetune(args) => finetune::finetune(args, company),
        EvalCommand::Detect(args) => detect::detect(args, company),
    })
}

/// What an evaluation needs, checked before the work begins.
struct Task<'a> {
    company: &'a Company,
    backbone: ResNet,
    recipe: Recipe,
    /// Where the weights came from, in words, and their fingerprint as loaded.
    origin: String,
    weights: String,
    /// Images of its batch-norm statistics, if saved with it.
    precise_batch_norm: Option<usize>,
    train: Pack,
    test: Pack,
    dataset: Option<Dataset>,
    protocol: Protocol,
}

impl<'a> Task<'a> {
    fn open(
        args: &EvalArgs,
        dataset: Option<Dataset>,
        protocol: Protocol,
        company: &'a Company,
    ) -> Result<Self> {
        let (train, test) = open_packs(args, company)?;
        match protocol {
            Protocol::Svm => {}
            Protocol::LowShot if train.has_objects() => {}
            _ => check_packs(&train, &test)?,
        }
        let run = &args.run;
        let device = device::parse(&run.device)?;
        let recipe = args.recipe.as_deref();
        let published = |recipe: &mut Recipe| match dataset {
            Some(dataset) => dataset
                .apply(protocol, &mut recipe.data.image_size, &mut recipe.eval)
                .context("--dataset (leave it out and choose settings with --set)"),
            None => Ok(()),
        };
        let weights = Weights {
            name: &args.weights,
            prefix: run.weights_prefix.as_deref(),
        };
        let loaded =
            weights::load_for(weights, recipe, published, &run.settings, run.seed, &device)?;
        if matches!(protocol, Protocol::Finetune { .. }) {
            weights::ensure_not_folded(loaded.folded, &loaded.origin, "fine-tuned")?;
        }
        Ok(Self {
            company,
            weights: weights_fingerprint(&loaded.backbone)?,
            backbone: loaded.backbone,
            recipe: loaded.recipe,
            origin: loaded.origin,
            precise_batch_norm: loaded.precise_batch_norm,
            train,
            test,
            dataset,
            protocol,
        })
    }

    /// See [`recompute_batch_norm`].
    fn recompute_batch_norm(&self, extraction: &Extraction) -> Result<BatchNormStatistics> {
        let saved = self.precise_batch_norm;
        recompute_batch_norm(&self.backbone, &self.recipe, &self.train, extraction, saved)
    }

    /// How features are read. Where images may show several classes the whole image counts, since an object
    /// may stand at its edge.
    fn extraction(&self) -> Extraction {
        let mut extraction = self.recipe.extraction();
        extraction.view.stretch = match self.protocol {
            Protocol::Svm => true,
            Protocol::LowShot => self.train.has_objects(),
            _ => false,
        };
        extraction
    }

    /// The same by all ranks; `None` on those that have read for the first. See [`Extraction::over`].
    fn shared_extraction(&self) -> Result<Option<Extraction>> {
        let (ranks, packs) = (&self.company.ranks, [&self.train, &self.test]);
        Ok(self.extraction().over(ranks, &self.backbone, &packs)?)
    }

    /// Random crops and flips, no colours: how training sees images.
    fn train_view(&self) -> Result<ImageView> {
        let eval = &self.recipe.eval;
        let config = ViewConfig {
            scale: eval.crop_scale,
            flip: eval.flip,
            ..ViewConfig::default()
        };
        let view = ImageView::new(&self.recipe.data, &config.without_colors())?;
        Ok(view)
    }

    /// Runs a training that an evaluation consists of on `pack`, with its checkpoints in `--out`.
    /// `matters` says which keys of the recipe its steps depend on, besides those of the network.
    fn train<T>(
        &self,
        args: &EvalArgs,
        resumes: bool,
        training: &mut T,
        pack: &Pack,
        matters: impl Fn(&str) -> bool,
    ) -> Result<()>
    where
        T: Training<Error: Into<anyhow::Error> + Into<BoxError>>,
    {
        ensure!(
            !resumes || args.out.is_some(),
            "--resume needs the --out that the checkpoints are in"
        );
        let matters = |key: &str| {
            let network = ["model.", "data.", "eval.precise_batch_norm"];
            key == "seed" || network.iter().any(|start| key.starts_with(start)) || matters(key)
        };
        let folder = self.company.writes_to(&args.out);
        let folder = folder.map(|out| RunDir::check(out, &self.recipe, resumes, matters));
        let identity = Identity {
            images: pack.len(),
            fingerprint: format!("images {}, weights {}", pack.fingerprint(), self.weights),
            seed: self.recipe.seed,
        };
        let command = ", give the same command with --resume".to_owned();
        let folder = folder.transpose()?;
        Session::open(training, folder, &self.recipe, identity, resumes, command)?
            .run(training, &mut nothing)?;
        Ok(())
    }

    /// What every result rests on.
    fn facts(&self, args: &EvalArgs, settings: Value) -> Value {
        json!({
            "weights": { "path": self.origin, "fingerprint": self.weights },
            "train": describe_pack(&args.train, &self.train),
            "test": describe_pack(args.test.as_ref().unwrap_or(&args.train), &self.test),
            "seed": self.recipe.seed,
            "view": {
                "resize": self.recipe.eval.resize,
                "crop": self.recipe.eval_view().crop,
                "stretch": self.extraction().view.stretch,
            },
            "settings": settings,
        })
    }

    /// Writes what a classifier takes for what into `--out`: `classes.html` and `confusion.csv`.
    fn write_classes(&self, args: &EvalArgs, found: &Classification) -> Result<()> {
        let Some(out) = self.company.writes_to(&args.out) else {
            return Ok(());
        };
        let test = args.test.as_ref().unwrap_or(&args.train);
        let fact = |name: &str, fact: String| (name.to_owned(), fact);
        let page = ClassesReport {
            title: &format!("{} by {}", test.display(), self.origin),
            facts: vec![
                fact("evaluation", self.protocol.to_string()),
                fact("images", self.test.len().to_string()),
                fact("classes", found.confusion.classes().len().to_string()),
            ],
            classification: found,
        };
        Ok(page.write(out)?)
    }

    /// Writes and prints a report with the facts it rests on, and the published figures, if the data
    /// set has any.
    fn finish(
        &self,
        args: &EvalArgs,
        report: &impl Serialize,
        facts: Value,
        table: impl FnOnce() -> String,
    ) -> Result<()> {
        let mut result = serde_json::to_value(report).context("writing the result as JSON")?;
        let published = self.dataset.and_then(|dataset| {
            let fraction = result["label_fraction"].as_f64();
            let published = dataset.published(self.protocol, fraction)?;
            let own = match self.protocol {
                Protocol::Linear => &result["best"][published.metric],
                _ => &result[published.metric],
            };
            Some((own.as_f64()?, published))
        });
        if let (Value::Object(result), Value::Object(facts)) = (&mut result, facts.clone()) {
            result.extend(facts);
            if let Some((own, published)) = &published {
                let mut published = serde_json::to_value(published)?;
                published["here"] = json!(own);
                result.insert("published".to_owned(), published);
            }
        }
        if let Some(out) = self.company.writes_to(&args.out) {
            fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
            write_result(out, &result)?;
        }
        if args.run.json {
            return print_json(&result);
        }
        let comparison = published.map_or(String::new(), |(own, published)| {
            format!("{} here {own:.1}; {published}\n", published.metric)
        });
        print(&format!("{}\n{comparison}{}", table(), origin(&facts)))
    }
}

/// The images to learn from and to be judged by.
fn open_packs(args: &EvalArgs, company: &Company) -> Result<(Pack, Pack)> {
    let train = Pack::open(company.own_path(&args.train))?;
    match &args.test {
        // Classes are matched by name: a test set may lack some, or have them in another order.
        Some(test) => {
            let test = Pack::open(company.own_path(test))?.with_class_names(train.class_names())?;
            Ok((train, test))
        }
        None => train
            .split(TEST_SHARE, TEST_SEED)
            .with_context(|| format!("keeping images of {} for the test", args.train.display())),
    }
}

/// A pack, for a result.
pub(crate) fn describe_pack(path: &Path, pack: &Pack) -> Value {
    json!({ "path": path, "images": pack.len(), "fingerprint": pack.fingerprint() })
}

/// Where the numbers came from, in words.
fn origin(facts: &Value) -> String {
    let statistics = &facts["precise_batch_norm"];
    let saved = statistics["saved"] == json!(true);
    let statistics = match statistics["images"].as_u64() {
        Some(images) if saved => format!("batch-norm statistics of {images} plain images, saved; "),
        Some(0) => "batch-norm statistics as saved; ".to_owned(),
        Some(images) => format!("batch-norm statistics recomputed on {images} plain images; "),
        None => String::new(),
    };
    let path = facts["weights"]["path"].as_str().unwrap_or_default();
    format!("weights {path}; {statistics}seed {}", facts["seed"])
}
