//! `pirl data inspect`.

use anyhow::{Result, bail};
use pirl_data::{DataError, Pack, Verification};

use crate::args::InspectArgs;
use crate::interrupt::{Interrupt, Interrupted};
use crate::output::{print, print_json};
use crate::progress::Progress;

pub(crate) fn run(args: &InspectArgs) -> Result<()> {
    let pack = Pack::open(&args.pack)?;
    let counts = pack.counts()?;
    let verified = args.verify.then(|| verify(&pack)).transpose()?;
    if args.json {
        return print_json(&counts.to_json(&pack, verified.as_ref()));
    }
    print(&counts.describe(&pack, verified.as_ref()))
}

/// Fails when any sample is broken or the checksum is another.
fn verify(pack: &Pack) -> Result<Verification> {
    let interrupt = Interrupt::install()?;
    let verified = Progress::watch("verifying", "images", pack.len(), |progress| {
        pack.verify(progress, &|| interrupt.seen())
    });
    let verified = match verified {
        Err(DataError::Stopped { done, total, .. }) => {
            bail!(Interrupted(format!("{done} of {total} images verified")))
        }
        verified => verified?,
    };
    verified.ensure_whole(pack)?;
    Ok(verified)
}
