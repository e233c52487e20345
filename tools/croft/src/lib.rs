//! What `croft` is made of: the operator's command line, as a library that the system tests drive too.
//!
//! * [`site`]: the site file, read with errors that name file and line.
//! * [`kernel`]: a kernel file, unpacked to the plain `Image` that goes into a bundle.
//! * [`bundle`]: from a site to the bytes of its bundle.
//! * [`attach`]: `croft console`, a console in another terminal.
//! * [`control`]: how `croft ps` and its like reach the host that another `croft run` keeps.
//! * [`session`]: a hypervisor at the other end of the link: its consoles, its log, its VMs, and how they end.
//! * [`terminal`]: a session shown to a person, or as lines of text.
//! * [`operate`]: what `croft ps` and its like print. [`statistics`]: what `croft stat` prints.
//!   [`moment`]: times of day as people write them.
//! * [`output`]: files that are written whole or not at all, and messages that may find no reader. [`printable`]:
//!   untrusted text on a terminal.
//! * [`saved`]: saved VMs as files. [`dump`]: VMs as ELF cores, for debuggers.
//! * [`run`]: all of it together, for `croft run`.
#![forbid(unsafe_code)]

pub mod attach;
pub mod boot_disk;
pub mod bundle;
mod compressed;
pub mod control;
pub mod decimal;
mod draft;
pub mod dump;
pub mod kernel;
pub mod moment;
pub mod operate;
pub mod output;
pub mod panics;
pub mod printable;
pub mod run;
pub mod saved;
pub mod session;
pub mod site;
pub mod size;
pub mod statistics;
pub mod terminal;
