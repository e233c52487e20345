//! The state of 32 interrupts as bitmaps, and the part of it that belongs to the vCPU that is handling them.

/// What the Distributor (SPIs) or one Redistributor (SGIs and PPIs) knows about 32 interrupts. Bit *n* is interrupt
/// *n*.
#[derive(Clone, Debug)]
pub(crate) struct Bank {
    /// ISENABLER.
    pub(crate) enabled: u32,
    /// IGROUPR: set for Group 1.
    pub(crate) group: u32,
    /// ICFGR: set for edge-triggered.
    pub(crate) edge: u32,
    /// Pending by an edge or by a write to ISPENDR, and in no list register.
    pub(crate) latched: u32,
    /// The input lines.
    pub(crate) level: u32,
    /// IPRIORITYR.
    pub(crate) priority: [u8; 32],
    /// Active interrupts whose priorities or groups may be others than when they were acknowledged. The CPU interface goes by what these
    /// were then (`kept_priority`, `kept_group`) until their end. Means nothing for others.
    pub(crate) kept: u32,
    pub(crate) kept_priority: [u8; 32],
    pub(crate) kept_group: u32,
}

impl Bank {
    /// The state at reset; `edge` for those whose trigger is fixed to edges.
    pub(crate) const fn new(edge: u32) -> Self {
        Self {
            enabled: 0,
            group: 0,
            edge,
            latched: 0,
            level: 0,
            priority: [0; 32],
            kept: 0,
            kept_priority: [0; 32],
            kept_group: 0,
        }
    }

    /// Keeps the priorities and groups of `active` interrupts, which are about to be changed.
    #[cold]
    pub(crate) fn keep(&mut self, active: u32) {
        for number in bits(active & !self.kept) {
            let priority = self.priority[number as usize & 31];
            self.keep_as(number, priority, self.group >> number & 1);
        }
    }

    /// Interrupt `number` was acknowledged with this priority, in group 0 or 1.
    #[cold]
    pub(crate) fn keep_as(&mut self, number: u32, priority: u8, group: u32) {
        self.kept_priority[number as usize & 31] = priority;
        self.kept |= 1 << number;
        self.kept_group = self.kept_group & !(1 << number) | group << number;
    }

    /// The priority and the group, 0 or 1, of interrupt `number`: of those `active` what they were when they were acknowledged.
    #[inline(always)]
    pub(crate) fn fields(&self, number: u32, active: u32) -> (u8, u32) {
        let is_kept = self.kept & active & 1 << number != 0;
        let (priority, group) =
            if is_kept { (&self.kept_priority, self.kept_group) } else { (&self.priority, self.group) };
        (priority[number as usize & 31], group >> number & 1)
    }

    /// Those whose group is forwarded; `groups` has all ones for a group that is, zero for one that is not.
    pub(crate) const fn in_groups(&self, groups: (u32, u32)) -> u32 {
        (!self.group & groups.0) | (self.group & groups.1)
    }

    /// Those that are pending (`also_pending` among them), enabled, and in a group that is forwarded.
    pub(crate) const fn deliverable(&self, groups: (u32, u32), also_pending: u32) -> u32 {
        (self.latched | self.asserted() | also_pending) & self.enabled & self.in_groups(groups)
    }

    /// Those that are level-sensitive and whose line is high.
    pub(crate) const fn asserted(&self) -> u32 {
        self.level & !self.edge
    }
}

/// What one vCPU holds of 32 interrupts: activations, and what its list registers carry.
///
/// `loaded` is the ledger of list registers between a flush and the next sync. The `carried_*` bits say what went
/// into them; a write to ICPENDR or ICACTIVER takes the bit away, so that the sync drops what the list register still
/// shows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    /// Active on this vCPU and in no list register.
    pub(crate) active: u32,
    /// Of those, and of `carried_active`, activations that no end of interrupt is going to end, since no active priority
    /// stands for them: made through ISACTIVER, or their priority was dropped with EOImode one. Means nothing for others.
    pub(crate) set_aside: u32,
    /// In a list register of this vCPU.
    pub(crate) loaded: u32,
    /// Loaded as pending because of a latch, which is in the list register now.
    pub(crate) carried_latch: u32,
    /// Loaded as active.
    pub(crate) carried_active: u32,
    /// Deactivated by ICACTIVER or on another vCPU since it was loaded.
    pub(crate) cancel_active: u32,
}

impl Held {
    /// Nothing at all.
    pub(crate) const NOTHING: Self =
        Self { active: 0, set_aside: 0, loaded: 0, carried_latch: 0, carried_active: 0, cancel_active: 0 };

    /// Held by this vCPU in any way: no other vCPU may take these.
    pub(crate) const fn any(&self) -> u32 {
        self.active | self.loaded
    }

    /// Active as far as the model knows.
    pub(crate) const fn active_or_carried(&self) -> u32 {
        self.active | self.carried_active
    }
}

/// The numbers of the set bits, lowest first.
pub(crate) fn bits(mut word: u32) -> impl Iterator<Item = u32> {
    core::iter::from_fn(move || {
        let bit = word.trailing_zeros();
        word &= word.wrapping_sub(1);
        (bit < 32).then_some(bit)
    })
}
