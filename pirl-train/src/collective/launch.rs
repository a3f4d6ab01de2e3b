//! Which rank this process is, by the variables of what launched it.

use std::time::Duration;

use super::{Ranks, alone};
use crate::error::{Result, TrainError};

/// A process's place among those launched together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its number, from 0.
    pub rank: usize,
    /// How many there are.
    pub size: usize,
    /// Its number on its machine, from 0.
    pub local: usize,
    /// Whose variables say so.
    pub launcher: &'static str,
}

/// Variables of a launcher: rank, number of ranks, rank on the machine. Those of Slurm are a step's, so
/// that a batch script's own process is no rank.
const LAUNCHERS: [(&str, [&str; 3]); 4] = [
    (
        "Open MPI",
        [
            "OMPI_COMM_WORLD_RANK",
            "OMPI_COMM_WORLD_SIZE",
            "OMPI_COMM_WORLD_LOCAL_RANK",
        ],
    ),
    (
        "srun",
        ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"],
    ),
    ("PMI", ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"]),
    ("torchrun", ["RANK", "WORLD_SIZE", "LOCAL_RANK"]),
];

/// The place that the variables of a launcher give this process; `None` if nothing launched it as one
/// of several.
///
/// # Errors
/// [`TrainError::Launch`] for a variable that is no number, or a rank that is not below their number.
pub fn launched(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Place>> {
    for (launcher, names) in LAUNCHERS {
        let [rank, size, _] = names;
        if variable(rank).is_none() || variable(size).is_none() {
            continue;
        }
        let mut numbers = [0; 3];
        for (number, name) in numbers.iter_mut().zip(names) {
            let Some(text) = variable(name) else { continue };
            let parsed = text.trim().parse();
            *number = parsed.map_err(|_| TrainError::Launch {
                launcher,
                reason: format!("{name} is {text:?}, expected a whole number"),
            })?;
        }
        let [rank, size, local] = numbers;
        if rank >= size {
            let [rank_name, size_name, _] = names;
            return Err(TrainError::Launch {
                launcher,
                reason: format!("{rank_name} is {rank}, expected less than {size_name}, {size}"),
            });
        }
        return Ok((size > 1).then_some(Place {
            rank,
            size,
            local,
            launcher,
        }));
    }
    Ok(None)
}

/// How ranks find each other.
#[derive(Clone, Copy, Debug)]
pub struct Join {
    /// How long any of them waits for the others before the run ends.
    pub timeout: Duration,
}

impl Default for Join {
    /// Ten minutes.
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(600),
        }
    }
}

/// Joins the processes that were launched with this one; [`Alone`](super::Alone) if there are none. Once a process.
///
/// # Errors
/// [`TrainError::Launch`] if this program was built without MPI, or MPI does not find the ranks that
/// the launcher started.
pub fn join(place: Option<&Place>, options: &Join) -> Result<Ranks> {
    match place {
        None => Ok(alone()),
        #[cfg(feature = "mpi")]
        Some(place) => super::mpi::Mpi::join(place, options),
        #[cfg(not(feature = "mpi"))]
        Some(Place { launcher, size, .. }) => {
            let _ = options;
            Err(TrainError::Launch {
                launcher,
                reason: format!(
                    "it started {size} ranks, and this program was built without MPI; build it with \
                     `cargo build --release -p pirl-cli --features mpi`, or start it alone"
                ),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Result<Option<Place>> {
        launched(|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn launchers_variables_give_rank_and_size() {
        let place = |rank, size, local, launcher| {
            Some(Place {
                rank,
                size,
                local,
                launcher,
            })
        };
        let open_mpi = [
            ("OMPI_COMM_WORLD_RANK", "5"),
            ("OMPI_COMM_WORLD_SIZE", "8"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
            ("SLURM_PROCID", "0"),
        ];
        assert_eq!(of(&open_mpi).unwrap(), place(5, 8, 1, "Open MPI"));
        let torchrun = [("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")];
        assert_eq!(of(&torchrun).unwrap(), place(1, 2, 1, "torchrun"));
        // The process of a batch script, before any srun.
        let batch = [("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4")];
        assert_eq!(of(&batch).unwrap(), None);
        assert_eq!(of(&[]).unwrap(), None);
        assert_eq!(of(&[("PMI_RANK", "0"), ("PMI_SIZE", "1")]).unwrap(), None);
    }

    #[test]
    fn variables_that_make_no_sense_are_named() {
        for (rank, said) in [
            ("x", "expected a whole number"),
            ("2", "less than WORLD_SIZE"),
        ] {
            let error = of(&[("RANK", rank), ("WORLD_SIZE", "2")]).unwrap_err();
            let text = error.to_string();
            assert!(text.contains("RANK") && text.contains(said), "{text}");
        }
    }
}
