//! The operator: `croft` as it reaches a run by its socket, as its commands do.

use crate::host::Run;
use anyhow::{Result, bail};
use croft::control::{self, About, ControlError, Order, Place, Report};
use std::path::{Path, PathBuf};

/// An operator of a run.
pub struct Operator {
    socket: PathBuf,
    _server: control::Server,
}

impl Operator {
    /// One who reaches it by a socket in `folder`.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn new(run: &Run, folder: &Path) -> Result<Self> {
        Self::with(run, About::default(), folder.join("socket"))
    }

    /// One who reaches it by `socket`, and finds the VMs as the site has them.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with(run: &Run, about: About, socket: PathBuf) -> Result<Self> {
        let server = control::serve(run.session(), about, &Place::at(&socket)?)?;
        Ok(Self { socket, _server: server })
    }

    /// Gives an order; the last report on it, if there was one.
    ///
    /// # Errors
    /// It was refused, with the reason.
    pub fn order(&self, order: &Order) -> Result<Option<Report>, ControlError> {
        let mut told = None;
        control::perform(control::connect(&self.socket)?, order, |report| told = Some(report))?;
        Ok(told)
    }

    /// The host's time of day in microseconds.
    ///
    /// # Errors
    /// It is not told.
    pub fn time(&self) -> Result<u64> {
        match self.order(&Order::Time)? {
            Some(Report::Time { microseconds, .. }) => Ok(microseconds),
            other => bail!("asked for the time, told {other:?}"),
        }
    }
}
