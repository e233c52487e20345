//! `BOOTAA64.EFI`: starts the hypervisor from UEFI firmware.
//!
//! Firmware loads this from the removable media path of an EFI system partition (UEFI 2.11, section 3.5.1.1), or by a boot entry. It reads
//! the hypervisor's image and bundle from the volume that it came from, takes firmware's device tree and map of memory, leaves boot
//! services, and enters the image as Linux' booting protocol says: at EL2, with MMU and data cache off, the tree's address in X0. What
//! is decided is decided by the crate `handover`; here is what only firmware can do.
//!
//! * [`volume`]: files. * [`pages`]: memory. * [`firmware`]: what firmware tells of the machine. * [`leave`]: the end of it.
//!
//! Until boot services are left each problem is said in words on firmware's console and returned to firmware as an error, which then
//! tries its next boot entry. From then on nobody is left to tell, so nothing is done there that can fail.
#![no_main]
#![no_std]
#![expect(unsafe_code, reason = "firmware hands out memory as addresses, and turning the MMU off is an instruction")]

extern crate alloc;

mod firmware;
mod leave;
mod pages;
mod volume;

use alloc::string::String;
use core::convert::Infallible;
use handover::image::{self, BadImage};
use handover::memory::Map;
use handover::request::{self, NoPath, Request};
use handover::tree::{self, Additions, BadTree};
use pages::Pages;
use uefi::prelude::*;
use uefi::println;
use uefi::runtime::ResetType;
use volume::{BadFile, Volume};

/// Why the hypervisor is not started.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    /// The level that is needed for it is somebody else's.
    #[error("firmware runs at EL{0}, and the hypervisor needs EL2: the CPU has no EL2, or another hypervisor has it")]
    Level(u64),
    /// A file.
    #[error("{path}: {why}")]
    File {
        /// Its path on the volume.
        path: String,
        /// What is wrong.
        why: BadFile,
    },
    /// The hypervisor's image.
    #[error("{path}: {why}")]
    Image {
        /// Its path on the volume.
        path: String,
        /// What is wrong.
        why: BadImage,
    },
    /// The words that it was given.
    #[error(transparent)]
    Request(#[from] NoPath),
    /// Firmware describes the machine in another way.
    #[error("{0}")]
    NoTree(&'static str),
    /// Firmware's tree cannot be used.
    #[error(transparent)]
    Tree(#[from] BadTree),
    /// Something that firmware was asked for.
    #[error("{what}: firmware says {status}")]
    Firmware {
        /// What was asked for.
        what: &'static str,
        /// Its answer.
        status: Status,
    },
}

impl Refusal {
    /// What firmware is told.
    fn status(&self) -> Status {
        match self {
            Self::Level(_) | Self::NoTree(_) => Status::UNSUPPORTED,
            Self::File { why, .. } => why.status(),
            Self::Image { .. } | Self::Tree(_) => Status::LOAD_ERROR,
            Self::Request(_) => Status::INVALID_PARAMETER,
            Self::Firmware { status, .. } => *status,
        }
    }
}

/// Says of an answer of firmware's what was asked for.
fn asked<T>(what: &'static str) -> impl FnOnce(uefi::Error) -> Result<T, Refusal> {
    move |error| Err(Refusal::Firmware { what, status: error.status() })
}

#[entry]
fn main() -> Status {
    if let Err(error) = uefi::helpers::init() {
        return error.status();
    }
    let Err(refusal) = start();
    println!("undercroft: not started: {refusal}");
    refusal.status()
}

fn start() -> Result<Infallible, Refusal> {
    let level = leave::exception_level();
    if level != 2 {
        return Err(Refusal::Level(level));
    }
    let mut volume = Volume::of_this().or_else(asked("the volume that this was loaded from"))?;
    let request = Request::parse(&words(&mut volume)?)?;
    let file = |path: &str| {
        let path = String::from(path);
        move |why| Refusal::File { path, why }
    };

    let read = volume.read(&request.image).map_err(file(&request.image))?;
    let bad = |why| Refusal::Image { path: request.image.clone(), why };
    let size = image::size_in_memory(read.bytes()).map_err(bad)?;
    let mut image = Pages::aligned(size, image::ALIGNMENT).or_else(asked("memory for the hypervisor"))?;
    image.bytes_mut()[..read.bytes().len()].copy_from_slice(read.bytes());
    drop(read);
    let bundle = volume.read(&request.bundle).map_err(file(&request.bundle))?;
    drop(volume);

    let old = firmware::device_tree().map_err(Refusal::NoTree)?;
    let mut tree_pages = Pages::new(tree::LARGEST as u64).or_else(asked("memory for the device tree"))?;
    let map = firmware::map().or_else(asked("the map of memory"))?;
    let additions = Additions { arguments: &request.arguments, bundle: bundle.range(), map: &map };
    let tree = tree::add(old, &additions)?;
    tree_pages.bytes_mut()[..tree.len()].copy_from_slice(&tree);
    println!("undercroft: {} and {} are loaded", request.image, request.bundle);

    let own = firmware::own_image().or_else(asked("where this program lies"))?;
    let ranges = [image.range(), bundle.range(), tree_pages.range(), own];
    enter(&map, ranges, &image, &tree_pages)
}

/// The words for the loader and the hypervisor: those of the boot entry or of the command line, else those of a file, if it is there.
fn words(volume: &mut Volume) -> Result<String, Refusal> {
    if let Some(words) = firmware::load_options() {
        return Ok(words);
    }
    match volume.read(request::ARGUMENTS) {
        Ok(file) => Ok(String::from_utf8_lossy(file.bytes()).into_owned()),
        Err(BadFile::Missing | BadFile::Empty) => Ok(String::new()),
        Err(why) => Err(Refusal::File { path: request::ARGUMENTS.into(), why }),
    }
}

/// Leaves firmware and enters the image.
fn enter(map: &Map, clean: [units::Range<units::Pa>; 4], image: &Pages, tree: &Pages) -> ! {
    let (image, tree) = (image.range().start, tree.range().start);
    if !firmware::leave_boot_services(map) {
        // What it keeps has changed while it was left, against what its map said a moment ago. The tree is wrong then.
        runtime::reset(ResetType::COLD, Status::ABORTED, None);
    }
    leave::enter(&clean, image, tree)
}
