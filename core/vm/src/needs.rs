//! How much of the host's memory a site needs: computed only here, for `croft`, which refuses a site that does not fit its host,
//! and for the hypervisor, which refuses it at boot.
//!
//! Memory is handed out in blocks of 2 MiB, and a block serves one owner, so that no two VMs' tables share one. A VM therefore
//! takes a block for its tables, however small it is. All that a VM could need while it runs is counted: once a site was
//! accepted, no VM of it ends because memory is missing.

use core::fmt;

use abi::bundle::Vm;
use units::{BLOCK_SIZE, GIGABYTE, PAGE_SIZE};
use vmware::Limits;

/// Bytes of a thread's stack.
pub const STACK: u64 = 32 << 10;
/// Bytes of the heap that a VM takes at most: its state, its devices', its console's buffers, the tree that it is given.
pub const HEAP_OF_A_VM: u64 = 96 << 10;
/// As well, each disk: what it remembers of a request. What is on it lies in the bundle.
pub const HEAP_OF_A_DISK: u64 = 8 << 10;
/// As well, each disk on a disk of the host's: its requests.
pub const HEAP_OF_A_HOST_DISK: u64 = 80 << 10;
/// Bytes of the host's disk behind it, which has its requests' buffers; as if each had one of its own.
const HOST_DISK: u64 = BLOCK_SIZE;
/// As well, each port of a network: what it remembers of frames, and its place in the switch.
pub const HEAP_OF_A_PORT: u64 = 24 << 10;
/// As well, each vCPU, and its thread.
pub const HEAP_OF_A_VCPU: u64 = 8 << 10;
/// As well, each 2 MiB block of a VM's RAM: where it is.
pub const HEAP_OF_A_BLOCK: u64 = 24;
/// As well, each thread on each CPU: its place in the queues, which grow by doubling.
pub const HEAP_OF_A_PLACE: u64 = 256;

/// Bytes of the heap that are left to the hypervisor itself when the last VM is made: the console's buffers, the link's, and what the
/// operator asks for, a VM that is saved or restored above all (`link::transfer` in the hypervisor adds up what that takes). It is part
/// of the block with which the heap begins.
pub const HEAP_OF_OUR_OWN: u64 = 768 << 10;
const _: () = assert!(HEAP_OF_OUR_OWN <= BLOCK_SIZE / 2);

/// Bytes of the heap that are asked for before a VM is made: what that takes itself with so many vCPUs, disks (and so many of these on
/// the host's) and ports, where so many threads are on so many CPUs already.
#[must_use]
pub const fn heap_to_make(vcpus: u8, (disks, on_host): (usize, usize), ports: usize, threads: u32, cpus: u32) -> u64 {
    let places = (threads as u64 + vcpus as u64) * cpus as u64;
    let disks = disks as u64 * HEAP_OF_A_DISK + on_host as u64 * HEAP_OF_A_HOST_DISK;
    let ports = ports as u64 * HEAP_OF_A_PORT;
    HEAP_OF_A_VM + vcpus as u64 * HEAP_OF_A_VCPU + disks + ports + places * HEAP_OF_A_PLACE
}

/// Bytes of the record of a frame allocator's divided block; there are [`divided_blocks`].
pub const RECORD: u64 = 320;

/// Tables of a VM beside those for its RAM: the root's two frames, two for the page of records of stolen time and the clock page,
/// these pages, and what waits to be freed until the TLBs have forgotten it.
const TABLES: u64 = 6 + 16;
/// Tables of the enclaves that a VM may have: of each the root's two frames, two above its pages, and one for each of its blocks.
const ENCLAVES: u64 = abi::enclave::MAX_ENCLAVES as u64 * (2 + 2 + abi::enclave::MAX_BLOCKS as u64);
/// Frames of a thread: its stack, and its part of the table that maps it.
const THREAD: u64 = STACK / PAGE_SIZE + 1;
/// Frames of a CPU: two stacks, its area, its start record, its top-level table and three below.
const CPU: u64 = 2 * THREAD + 6;
/// Threads that serve all VMs: the consoles', the watchdogs', the link's, and that of the host's disks.
const SERVICES: u64 = 4;

/// For how many blocks that are divided into frames a host with so many bytes of RAM needs records: two for each VM, the
/// hypervisor's own, those that are in use in part when it starts; and one for the tables of each gigabyte.
#[must_use]
pub const fn divided_blocks(memory: u64) -> u64 {
    let more = memory / GIGABYTE;
    // The allocator numbers its records with 16 bits.
    if more > 60_000 { 60_256 } else { 256 + more }
}

/// What a site takes of the host's memory, in bytes, whole blocks each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Needs {
    /// The RAM of the VMs.
    pub ram: u64,
    /// Their stage 2 tables, if every block of their RAM has to be split.
    pub tables: u64,
    /// What their guests write to disks.
    pub changes: u64,
    /// The state of VMs and vCPUs, on the heap.
    pub heap: u64,
    /// The stacks of vCPUs and CPUs.
    pub stacks: u64,
    /// The bundle.
    pub bundle: u64,
    /// What the hypervisor takes without VMs, and what idle CPUs are zeroing.
    pub own: u64,
}

/// What one VM adds to the [`Needs`] of its site.
#[derive(Clone, Copy, Default, Debug)]
pub struct Share {
    ram: u64,
    tables: u64,
    changes: u64,
    devices: u64,
    vcpus: u64,
    heap: u64,
}

impl Share {
    /// That of `vm`.
    #[must_use]
    pub fn of<Text, File, Program>(vm: &Vm<Text, File, Program>) -> Self {
        let blocks = vm.memory.div_ceil(BLOCK_SIZE);
        let enclaves = if vm.enclave { ENCLAVES } else { 0 };
        let frames = TABLES + enclaves + vm.memory.div_ceil(GIGABYTE) + blocks;
        // What is written to its disks is as much its memory, which no table shows it.
        let changes = vm.disks.changes().div_ceil(BLOCK_SIZE);
        let service = if vm.doors.vmware { Limits::of(&vm.doors.quota).most_memory() as u64 } else { 0 };
        Self {
            ram: blocks.saturating_mul(BLOCK_SIZE),
            tables: whole_blocks(frames * PAGE_SIZE),
            changes: changes.saturating_mul(BLOCK_SIZE),
            devices: vm.disks.on_host() as u64 * HOST_DISK,
            vcpus: vm.vcpus.into(),
            heap: HEAP_OF_A_VM
                + u64::from(vm.vcpus) * HEAP_OF_A_VCPU
                + vm.disks.count() as u64 * HEAP_OF_A_DISK
                + vm.ports.count() as u64 * HEAP_OF_A_PORT
                + blocks.saturating_add(changes) * HEAP_OF_A_BLOCK
                + vm.disks.on_host() as u64 * HEAP_OF_A_HOST_DISK
                + service,
        }
    }
}

const fn whole_blocks(bytes: u64) -> u64 {
    match bytes.checked_next_multiple_of(BLOCK_SIZE) {
        Some(bytes) => bytes,
        None => u64::MAX - (BLOCK_SIZE - 1),
    }
}

/// How much of the heap so many bytes of state take, with what an allocator loses between pieces of any size.
const fn heap(bytes: u64) -> u64 {
    whole_blocks(bytes + bytes / 8)
}

impl Needs {
    /// What VMs with these shares need on a host with so many CPUs and so many bytes of RAM, out of a bundle of `bundle` bytes.
    #[must_use]
    pub fn of(shares: impl Iterator<Item = Share>, cpus: usize, memory: u64, bundle: u64) -> Self {
        let sum = shares.fold(Share::default(), |sum, share| Share {
            ram: sum.ram.saturating_add(share.ram),
            tables: sum.tables.saturating_add(share.tables),
            changes: sum.changes.saturating_add(share.changes),
            devices: sum.devices + share.devices,
            vcpus: sum.vcpus + share.vcpus,
            heap: sum.heap + share.heap,
        });
        let cpus = cpus as u64;
        let places = (sum.vcpus + SERVICES + cpus) * cpus;
        let frames = (sum.vcpus + SERVICES) * THREAD + cpus * CPU;
        let records = memory / BLOCK_SIZE * 8 + divided_blocks(memory) * RECORD;
        // The image; the host's device tree, of up to 2 MiB that begin anywhere; what the heap begins with; the records, which begin
        // anywhere too; buffers of the link's port; and a block that each CPU may be zeroing, which nobody else can have meanwhile.
        let own = 1 + 2 + 1 + 1 + 1 + cpus;
        Self {
            ram: sum.ram,
            tables: sum.tables,
            changes: sum.changes,
            heap: heap(sum.heap + places * HEAP_OF_A_PLACE),
            stacks: whole_blocks(frames * PAGE_SIZE),
            // It begins anywhere.
            bundle: if bundle == 0 { 0 } else { whole_blocks(bundle).saturating_add(BLOCK_SIZE) },
            own: whole_blocks(records) + own * BLOCK_SIZE + sum.devices,
        }
    }

    /// What the VMs take, in bytes: all but the bundle and the hypervisor's own.
    #[must_use]
    pub const fn of_vms(&self) -> u64 {
        self.ram
            .saturating_add(self.tables)
            .saturating_add(self.changes)
            .saturating_add(self.heap)
            .saturating_add(self.stacks)
    }

    /// All of it, in bytes.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.of_vms().saturating_add(self.bundle).saturating_add(self.own)
    }

    /// Whether a host with so many bytes of RAM has room for it.
    ///
    /// # Errors
    /// What is needed and what there is.
    pub const fn fit(self, memory: u64) -> Result<(), DoesNotFit> {
        if self.total() <= memory { Ok(()) } else { Err(DoesNotFit { needs: self, memory }) }
    }
}

/// A site that needs more memory than its host has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DoesNotFit {
    /// What it needs.
    pub needs: Needs,
    /// The host's RAM, in bytes.
    pub memory: u64,
}

impl fmt::Display for DoesNotFit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { needs: Needs { ram, tables, changes, heap, stacks, bundle, own }, memory } = *self;
        let [ram, tables, changes, state, bundle, own, total, memory] =
            [ram, tables, changes, heap + stacks, bundle, own, self.needs.total(), memory].map(|bytes| bytes >> 20);
        write!(f, "the VMs do not fit: {ram} MiB for their RAM, {tables} for its tables, ")?;
        if changes > 0 {
            write!(f, "{changes} for what is written to their disks (`changes`), ")?;
        }
        write!(
            f,
            "{state} for vCPUs and devices, \
             {bundle} for their files and {own} for the hypervisor make {total} MiB, and the host has {memory}; give it \
             {total} MiB or more, or the VMs less"
        )
    }
}

impl core::error::Error for DoesNotFit {}

#[cfg(test)]
mod tests {
    use super::{BLOCK_SIZE, Needs, Share, divided_blocks};
    use abi::bundle::{Backend, Disk, Disks, HostPart, Port, Ports, Quota, Vm};
    use std::string::ToString;

    const MIB: u64 = 1 << 20;

    fn share(memory: u64, vcpus: u8) -> Share {
        Share::of(&vm(memory, vcpus))
    }

    fn vm(memory: u64, vcpus: u8) -> Vm<&'static str, &'static str, ()> {
        Vm { vcpus, ..Vm::new("vm", "kernel", memory) }
    }

    fn needs(count: usize, memory: u64, vcpus: u8, cpus: usize) -> Needs {
        Needs::of(std::iter::repeat_n(share(memory, vcpus), count), cpus, 1 << 30, 0)
    }

    #[test]
    fn each_vm_has_blocks_of_tables_of_its_own() {
        assert_eq!(needs(40, 8 * MIB, 2, 2).tables, 80 * MIB);
        // 512 frames, of which those that every VM has leave room for 489 blocks.
        assert_eq!(needs(1, 978 * MIB, 1, 1).tables, 2 * MIB);
        assert_eq!(needs(1, 980 * MIB, 1, 1).tables, 4 * MIB);
        // A frame for each block of 2 MiB, and one for each gigabyte.
        assert_eq!(needs(1, 256 << 30, 1, 1).tables, (512 + 1 + 1) * MIB);
    }

    #[test]
    fn stacks_and_state_grow_with_vcpus_and_cpus() {
        let [one, all] = [1, 8].map(|vcpus| needs(64, 2 * MIB, vcpus, 8));
        let stacks = 64 * 7 * (32 << 10);
        assert!(all.stacks >= one.stacks + stacks, "{} {}", one.stacks, all.stacks);
        assert!(all.heap >= one.heap + 64 * 7 * super::HEAP_OF_A_VCPU);
        assert!(needs(64, 2 * MIB, 8, 64).heap >= all.heap + 56 * 512 * super::HEAP_OF_A_PLACE);
        let closed = vm(2 * MIB, 1);
        let mut open = closed;
        (open.doors.vmware, open.doors.quota) = (true, Quota { store: 8 << 20, ..Quota::USUAL });
        let heap = |vm: &_| Needs::of(std::iter::once(Share::of(vm)), 1, 1 << 30, 0).heap;
        assert!(heap(&open) >= heap(&closed) + 16 * MIB, "what a guest may store is set aside twice");
    }

    /// Those of 978 MiB fit into a block beside the others; with those of enclaves they do not.
    #[test]
    fn tables_of_enclaves_are_counted() {
        let bare = vm(978 * MIB, 1);
        let with = Vm { enclave: true, ..bare };
        assert_eq!((Share::of(&bare).tables, Share::of(&with).tables), (2 * MIB, 4 * MIB));
    }

    #[test]
    fn what_a_vm_is_made_of_is_counted() {
        for (vcpus, cpus) in [(1, 1), (8, 2), (8, 64)] {
            // The last of many: beside it are the threads of all others, and of the hypervisor.
            let count = 64;
            let threads = (count - 1) * u32::from(vcpus) + cpus + 2;
            let others: u64 = (0..count as u64 - 1).map(|_| share(8 * MIB, vcpus).heap).sum();
            let last = super::heap_to_make(vcpus, (0, 0), 0, threads, cpus);
            let all = needs(count as usize, 8 * MIB, vcpus, cpus as usize).heap;
            assert!(others + last <= all, "{vcpus} vCPUs, {cpus} CPUs: {others} + {last}, and {all} are prepared");
        }
    }

    /// What is looked for before a VM is made: its own, each vCPU's, and a place on each CPU for each thread that there is then.
    #[test]
    fn a_vm_is_made_of_its_parts() {
        let none = super::heap_to_make(0, (0, 0), 0, 0, 2);
        assert_eq!(none, super::HEAP_OF_A_VM);
        assert_eq!(
            super::heap_to_make(3, (4, 0), 6, 5, 2) - none,
            3 * super::HEAP_OF_A_VCPU
                + 4 * super::HEAP_OF_A_DISK
                + 6 * super::HEAP_OF_A_PORT
                + (3 + 5) * 2 * super::HEAP_OF_A_PLACE
        );
    }

    /// docs/hardware.md says them to whoever plans a host; `hw::stack` asserts that the stack is its own.
    #[test]
    fn what_each_part_takes() {
        use super::{HEAP_OF_A_DISK, HEAP_OF_A_HOST_DISK, HEAP_OF_A_VCPU, HEAP_OF_A_VM, STACK};
        let parts = [STACK, HEAP_OF_A_VCPU, HEAP_OF_A_VM, HEAP_OF_A_DISK, HEAP_OF_A_HOST_DISK];
        assert_eq!(parts.map(|bytes| bytes / 1024), [32, 8, 96, 8, 80]);
        assert_eq!(super::HEAP_OF_OUR_OWN / 1024, 768);
    }

    /// Where the sum of a share is more than any number, so is what is needed: nothing fits.
    #[test]
    fn what_is_more_than_any_host_has_fits_none() {
        assert_eq!(super::whole_blocks(u64::MAX), u64::MAX - (BLOCK_SIZE - 1));
        assert_eq!(super::whole_blocks(BLOCK_SIZE + 1), 2 * BLOCK_SIZE);
        // 16 terabytes: eight bytes for each block, and a record for each of its gigabytes and 256 more, which take more than a block.
        let records = (16 << 40) / BLOCK_SIZE * 8 + (256 + (16 << 10)) * super::RECORD;
        let own = Needs::of(std::iter::empty(), 0, 16 << 40, 0).own;
        assert_eq!(own, 6 * BLOCK_SIZE + records.next_multiple_of(BLOCK_SIZE));
        let needs = Needs { ram: 0, tables: 0, changes: 0, heap: 3 * MIB, stacks: 2 * MIB, bundle: 0, own: 0 };
        assert!(needs.fit(MIB).unwrap_err().to_string().contains(" 5 for vCPUs and devices"));
    }

    #[test]
    fn each_disk_and_port_is_counted() {
        let disk = |serial| Disk::of_image("image", serial);
        let bare = vm(8 * MIB, 1);
        let with = Vm { disks: Disks::of(["a", "b", "c"].map(disk)).unwrap(), ..bare };
        assert_eq!(Share::of(&with).heap - Share::of(&bare).heap, 3 * super::HEAP_OF_A_DISK);
        let [none, three] = [0, 3].map(|disks| super::heap_to_make(1, (disks, 0), 0, 5, 2));
        assert_eq!(three - none, 3 * super::HEAP_OF_A_DISK);
        let port = |last| Port { network: "lan", vlan: 0, mac: [2, 0, 0, 0, 0, last], mtu: 1500 };
        let with = Vm { ports: Ports::of([1, 2].map(port)).unwrap(), ..bare };
        assert_eq!(Share::of(&with).heap - Share::of(&bare).heap, 2 * super::HEAP_OF_A_PORT);
        // One on the host's disk has more requests, and buffers there.
        let part = HostPart { disk: "virtio0", offset: 0, size: 0, read_only: false };
        let disk = |serial| Disk { backend: Backend::Host(part), serial };
        let on_host = Vm { disks: Disks::of(["a", "b", "c"].map(disk)).unwrap(), ..bare };
        let more = 3 * (super::HEAP_OF_A_DISK + super::HEAP_OF_A_HOST_DISK);
        assert_eq!(Share::of(&on_host).heap - Share::of(&bare).heap, more);
        assert_eq!(super::heap_to_make(1, (3, 3), 0, 5, 2) - none, more);
        let own = |vm| Needs::of(std::iter::once(Share::of(vm)), 1, 1 << 30, 0).own;
        assert_eq!(own(&on_host) - own(&bare), 3 * 2 * MIB);
    }

    /// What is written to disks takes memory as a guest's RAM does, and no tables.
    #[test]
    fn what_is_written_to_disks_is_counted() {
        let disk = |serial, changes| Disk { backend: Backend::Image { image: "image", changes }, serial };
        let bare = vm(8 * MIB, 1);
        let with = Vm { disks: Disks::of([disk("a", 64 * MIB), disk("b", 0), disk("c", 2 * MIB)]).unwrap(), ..bare };
        let [bare, with] = [bare, with].map(|vm| Needs::of(std::iter::repeat_n(Share::of(&vm), 8), 1, 1 << 30, 0));
        assert_eq!((with.ram, with.tables), (bare.ram, bare.tables));
        assert_eq!((with.changes, bare.changes, with.total() - bare.total() >= 8 * 66 * MIB), (8 * 66 * MIB, 0, true));
        let said = with.fit(MIB).unwrap_err().to_string();
        assert!(
            said.contains("64 MiB for their RAM, 16 for its tables, 528 for what is written to their disks"),
            "{said}"
        );
        assert!(!bare.fit(MIB).unwrap_err().to_string().contains("disks"));
    }

    #[test]
    fn the_hypervisors_own_grows_with_the_host() {
        let own = |cpus, memory| Needs::of(std::iter::empty(), cpus, memory, 0).own;
        assert_eq!(own(2, 1 << 30), (1 + 2 + 1 + 1 + 1 + 2 + 1) * BLOCK_SIZE);
        assert_eq!(own(8, 1 << 30) - own(2, 1 << 30), 6 * BLOCK_SIZE);
        assert!(own(2, 1 << 40) >= own(2, 1 << 30) + (4 << 20), "eight bytes for each block of 2 MiB");
        assert_eq!(divided_blocks(1 << 30), 257);
        assert!(divided_blocks(u64::MAX) < 65_535);
    }

    #[test]
    fn what_fits_and_what_does_not() {
        let shares = || std::iter::repeat_n(share(8 * MIB, 2), 40);
        let needs = Needs::of(shares(), 2, 392 * MIB, 3 * MIB);
        assert_eq!(needs.bundle, 6 * MIB, "it may begin anywhere in a block");
        assert_eq!(needs.fit(needs.total()), Ok(()));
        let said = needs.fit(needs.total() - 1).unwrap_err().to_string();
        assert!(
            said.contains("320 MiB for their RAM, 80 for its tables") && said.contains("6 for their files"),
            "{said}"
        );
        let said = needs.fit(392 * MIB).unwrap_err().to_string();
        let total = needs.total() / MIB;
        assert!(said.contains(&std::format!("make {total} MiB, and the host has 392; give it {total} MiB")), "{said}");
    }

    #[test]
    fn each_part_is_the_sum_of_what_makes_it_up() {
        const KIB: u64 = 1 << 10;
        let with_loss = |bytes: u64| (bytes + bytes / 8).next_multiple_of(BLOCK_SIZE);
        for (count, blocks, vcpus, cpus) in [(1, 1, 1, 1), (3, 512, 4, 2), (64, 1, 8, 8), (40, 5000, 2, 64)] {
            let needs = needs(count as usize, blocks * BLOCK_SIZE, vcpus as u8, cpus as usize);
            let threads = count * vcpus + 3;
            assert_eq!(needs.stacks, ((threads * 9 + cpus * 24) * 4 * KIB).next_multiple_of(BLOCK_SIZE));
            let places = (threads + cpus) * cpus;
            let exact = count * ((96 + 8 * vcpus) * KIB + 24 * blocks) + 256 * places;
            assert_eq!(needs.heap, with_loss(exact), "{count} VMs of {vcpus} vCPUs on {cpus} CPUs");
        }
        let own = |memory: u64| Needs::of(std::iter::empty(), 1, memory, 0).own;
        // 4 bytes a megabyte, and 320 for each of 256 divided blocks and one a gigabyte.
        let records: u64 = (64 << 10) * 4 + (256 + 64) * 320;
        assert_eq!(own(64 << 30), records.next_multiple_of(BLOCK_SIZE) + 7 * BLOCK_SIZE);
        assert_eq!(divided_blocks((60_001 << 30) - 1), 60_256);
    }

    #[test]
    fn nothing_overflows() {
        let huge = Needs::of(std::iter::repeat_n(share(u64::MAX, 8), 64), 64, u64::MAX, u64::MAX);
        assert!(huge.fit(u64::MAX - 1).is_err());
    }
}
