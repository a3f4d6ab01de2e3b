//! Batch norm as a scale and a shift.

use super::statistics::Statistics;

/// Batch norm by given statistics, as a line for each channel: `x * scale + shift`.
#[derive(Clone, Debug, PartialEq)]
pub struct Affine {
    /// The factor of each channel.
    pub scale: Vec<f32>,
    /// What is added to each channel.
    pub shift: Vec<f32>,
}

impl Affine {
    /// `(x - mean) / sqrt(var + eps) * gamma + beta` for each of `c` channels; `gamma`, `beta` and the
    /// statistics: `(c)`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn new(gamma: &[f32], beta: &[f32], statistics: &Statistics) -> Self {
        let (c, channels) = (gamma.len(), statistics.channels());
        let (mean, inv_std) = (&channels.mean, &channels.inv_std);
        assert_eq!(
            (beta.len(), mean.len(), inv_std.len()),
            (c, c, c),
            "channels of a batch norm"
        );
        let scale: Vec<f32> = gamma.iter().zip(inv_std).map(|(g, i)| g * i).collect();
        let shift = (0..c).map(|i| beta[i] - mean[i] * scale[i]).collect();
        Self { scale, shift }
    }
}
