//! The ranges of a recipe's values.

use pirl_core::{SettingError, check};

use super::tables::{
    BankConfig, CheckpointConfig, LoaderTable, LogConfig, LossConfig, Recipe, TrainConfig,
};

impl Recipe {
    /// Whether the values can work, whatever the data.
    ///
    /// # Errors
    /// [`SettingError`] of the first value outside its range, by its dotted key.
    pub fn check(&self) -> Result<(), SettingError> {
        let eval = &self.eval;
        // Every table checks its own fields; here they get its name.
        let tables = [
            ("data", self.data.check()),
            ("transform.image", self.transform.image.check()),
            ("transform.patch", self.transform.patch.check()),
            ("pretext", self.pretext.check()),
            ("model", self.model.check()),
            ("loss", self.loss.check()),
            ("bank", self.bank.check()),
            ("optim", self.optim.check()),
            ("schedule", self.schedule.check()),
            ("train", self.train.check()),
            ("loader", self.loader.check()),
            ("log", self.log.check()),
            ("checkpoint", self.checkpoint.check()),
            ("eval", eval.check()),
            ("eval", self.eval_view().check()),
        ];
        for (table, checked) in tables {
            checked.map_err(|error| error.within(table))?;
        }
        let crop = self.eval_view().crop;
        let expected = format!(
            "the centre crop of {crop} pixels (eval.crop; 0: data.image_size) must fit into it"
        );
        check("eval.resize", eval.resize, eval.resize >= crop, &expected)
    }
}

impl LossConfig {
    fn check(&self) -> Result<(), SettingError> {
        let fits = (0.0..=1.0).contains(&self.lambda);
        check("lambda", self.lambda, fits, "must lie in [0, 1]")?;
        let temperature = self.temperature;
        let fits = temperature.is_finite() && temperature > 0.0;
        check(
            "temperature",
            temperature,
            fits,
            "must be finite and positive",
        )
    }
}

impl BankConfig {
    fn check(&self) -> Result<(), SettingError> {
        check("dim", self.dim, self.dim > 0, "must be at least 1")?;
        let fits = (0.0..=1.0).contains(&self.momentum);
        check("momentum", self.momentum, fits, "must lie in [0, 1]")
    }
}

impl TrainConfig {
    fn check(&self) -> Result<(), SettingError> {
        let images = self.batch_size;
        check("batch_size", images, images > 0, "must be at least 1")?;
        let fits = self.epochs > 0 || self.steps > 0;
        check("epochs", self.epochs, fits, "must be at least 1")
    }
}

impl LoaderTable {
    fn check(&self) -> Result<(), SettingError> {
        let (batches, mib) = (self.look_ahead, self.look_ahead_mib);
        check("look_ahead", batches, batches > 0, "must be at least 1")?;
        check("look_ahead_mib", mib, mib > 0, "must be at least 1")
    }
}

impl LogConfig {
    fn check(&self) -> Result<(), SettingError> {
        check("every", self.every, self.every > 0, "must be at least 1")
    }
}

impl CheckpointConfig {
    fn check(&self) -> Result<(), SettingError> {
        check("keep", self.keep, self.keep > 0, "must be at least 1")
    }
}
