//! What a VM is, said once for the whole way from the site file to EL2.
//!
//! Only values that are too large for a record change their form on the way: `croft`'s site owns texts and files, the
//! bundle's writer borrows them, and the hypervisor finds them in the bundle. So those are type parameters, and
//! [`Vm::with`] converts from one form to the next. All others are carried along as they are; those with a
//! usual value are rows, at the end of this file.

use super::{ANY_CPU, Coherency, DEFAULT_WEIGHT, Disks, Doors, Ports, Time};
use serde::{Deserialize, Serialize};

/// Makes [`Vm`]: what changes its form is written down here, and the rows of the others are given, each with its usual value, which a
/// site file need not say.
macro_rules! vm {
    ($($(#[doc = $says:literal])* $field:ident: $type:ty = $usual:expr;)*) => {
        /// One VM, as the site file describes it.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
        pub struct Vm<Text, File, Program> {
            /// 1 to 32 of `a` to `z`, `0` to `9` and `-`; unique in the site. See [`super::check_name`].
            pub name: Text,
            /// 1 to 8.
            pub vcpus: u8,
            /// RAM in bytes: a multiple of 2 MiB from [`super::MIN_MEMORY`] to [`super::MAX_MEMORY`], more than the kernel and
            /// initrd files.
            pub memory: u64,
            /// The kernel. In a site any file that croft can unpack; in a bundle an uncompressed arm64 `Image`, or the bytes of
            /// `program`.
            pub kernel: File,
            /// How the kernel is loaded and entered, if it is no `Image`. In a site only what a raw binary does not say itself.
            pub program: Option<Program>,
            /// The initial ramdisk.
            pub initrd: Option<File>,
            /// Its disks.
            pub disks: Disks<Text, File>,
            /// Its ports of networks.
            pub ports: Ports<Text>,
            /// The kernel's command line, without NUL bytes; at most [`super::MAX_CMDLINE`] bytes.
            pub cmdline: Text,
            $($(#[doc = $says])* pub $field: $type,)*
        }

        impl<Text: Default, File, Program> Vm<Text, File, Program> {
            /// A VM with one vCPU, of which nothing else is said.
            #[must_use]
            pub fn new(name: impl Into<Text>, kernel: impl Into<File>, memory: u64) -> Self {
                Self {
                    name: name.into(),
                    vcpus: 1,
                    memory,
                    kernel: kernel.into(),
                    program: None,
                    initrd: None,
                    disks: Disks::default(),
                    ports: Ports::default(),
                    cmdline: Text::default(),
                    $($field: $usual,)*
                }
            }
        }

        impl<Text, File, Program> Vm<Text, File, Program> {
            /// The same VM with its texts in the form that `text` gives them, and these files.
            #[must_use]
            pub fn with<'a, NewText, NewFile, NewProgram>(
                &'a self,
                text: impl Fn(&'a Text) -> NewText,
                kernel: NewFile,
                program: Option<NewProgram>,
                initrd: Option<NewFile>,
                disks: Disks<NewText, NewFile>,
            ) -> Vm<NewText, NewFile, NewProgram> {
                let Self { name, vcpus, memory, kernel: _, program: _, initrd: _, disks: _, ports, cmdline, $($field,)* } = self;
                Vm {
                    name: text(name),
                    vcpus: *vcpus,
                    memory: *memory,
                    kernel,
                    program,
                    initrd,
                    disks,
                    ports: ports.with(&text),
                    cmdline: text(cmdline),
                    $($field: *$field,)*
                }
            }
        }
    };
}

vm! {
    /// Share of CPU time relative to other VMs', 1 to [`super::MAX_WEIGHT`].
    weight: u16 = DEFAULT_WEIGHT;
    /// The host CPUs that the VM may run on, a bit each; not 0. [`ANY_CPU`] if the site file doesn't say.
    affinity: u64 = ANY_CPU;
    /// It starts with the host; one that does not is off until the operator starts it, or restores a saved VM in its place.
    autostart: bool = true;
    /// It has the enclave device.
    enclave: bool = false;
    /// While it is paused its counters stand still too.
    pause_stops_time: bool = false;
    /// The frequency of its counters, and how fast its time passes.
    time: Time = Time::default();
    /// When its pages become executable.
    coherency: Coherency = Coherency::OnDemand;
    /// How it may call the hypervisor.
    doors: Doors = Doors::default();
}
