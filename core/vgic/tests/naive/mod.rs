//! A second model of the same interrupt controller, as simple as the architecture's text allows (GIC IHI 0069H 4 and
//! 12): one structure for each interrupt, no list registers, and an ideal CPU interface that always knows the latest
//! state. It shares no code and no representation with the real one, so that the two do not share mistakes.

/// One interrupt.
#[derive(Clone, Default)]
pub(crate) struct Interrupt {
    pub(crate) enabled: bool,
    pub(crate) group1: bool,
    pub(crate) edge: bool,
    pub(crate) priority: u8,
    /// Pending by an edge, an SGI, or ISPENDR.
    pub(crate) latch: bool,
    /// Latched again while a list register still showed the previous latch: two acknowledges are then as right as one.
    pub(crate) fresh: bool,
    /// The input line.
    pub(crate) line: bool,
    /// A physical interrupt that stands behind it fired and has not been acknowledged.
    pub(crate) fired: bool,
    pub(crate) active: bool,
    pub(crate) router: u64,
}

impl Interrupt {
    pub(crate) fn pending(&self) -> bool {
        self.latch || self.fired || (self.line && !self.edge)
    }
}

/// A register for one attribute of each interrupt.
enum Family {
    Group,
    SetEnable,
    ClearEnable,
    SetPending,
    ClearPending,
    SetActive,
    ClearActive,
}

pub(crate) struct Naive {
    pub(crate) vcpus: usize,
    priority_mask: u8,
    pub(crate) group0: bool,
    pub(crate) group1: bool,
    pub(crate) asleep: Vec<bool>,
    pub(crate) on: Vec<bool>,
    /// GICR_CTLR.DPG0 and DPG1NS.
    declines: Vec<[bool; 2]>,
    /// ICC_IGRPEN0_EL1 and ICC_IGRPEN1_EL1.
    pub(crate) enables: Vec<[bool; 2]>,
    private: Vec<Vec<Interrupt>>,
    shared: Vec<Interrupt>,
}

impl Naive {
    pub(crate) fn new(vcpus: usize, priority_bits: u8) -> Self {
        let mut private = vec![Interrupt::default(); 32];
        for sgi in &mut private[..16] {
            sgi.edge = true;
        }
        Self {
            vcpus,
            priority_mask: (0xFF00_u16 >> priority_bits) as u8,
            group0: false,
            group1: false,
            asleep: vec![false; vcpus],
            on: vec![true; vcpus],
            declines: vec![[false; 2]; vcpus],
            enables: vec![[true; 2]; vcpus],
            private: vec![private; vcpus],
            shared: vec![Interrupt::default(); 96],
        }
    }

    pub(crate) fn get(&mut self, vcpu: usize, id: u32) -> &mut Interrupt {
        if id < 32 { &mut self.private[vcpu][id as usize] } else { &mut self.shared[id as usize - 32] }
    }

    fn target(&self, id: u32) -> Option<usize> {
        let router = self.shared[id as usize - 32].router;
        if router >> 31 & 1 == 1 {
            let group = usize::from(self.shared[id as usize - 32].group1);
            return (0..self.vcpus).find(|&vcpu| {
                self.on[vcpu] && !self.asleep[vcpu] && !self.declines[vcpu][group] && self.enables[vcpu][group]
            });
        }
        let vcpu = (router & 0xFF_00FF_FFFF) as usize;
        (vcpu < self.vcpus).then_some(vcpu)
    }

    /// Whether the CPU interface of `vcpu` is offered interrupt `id`.
    pub(crate) fn deliverable(&mut self, vcpu: usize, id: u32) -> bool {
        let routed = id < 32 || self.target(id) == Some(vcpu);
        let (group0, group1, asleep) = (self.group0, self.group1, self.asleep[vcpu]);
        let interrupt = self.get(vcpu, id);
        let group = if interrupt.group1 { group1 } else { group0 };
        routed && group && !asleep && interrupt.enabled && interrupt.pending() && !interrupt.active
    }

    /// The most important of what is due on `vcpu` and in a group that its CPU interface has enabled, lowest INTID first: it,
    /// its group and its priority. The CPU interface takes it or nothing.
    pub(crate) fn best(&mut self, vcpu: usize) -> Option<(u32, usize, u8)> {
        let mut best: Option<(u32, usize, u8)> = None;
        for id in 0..128 {
            let (priority, group) = (self.get(vcpu, id).priority, usize::from(self.get(vcpu, id).group1));
            if self.deliverable(vcpu, id)
                && self.enables[vcpu][group]
                && best.is_none_or(|(_, _, most)| priority < most)
            {
                best = Some((id, group, priority));
            }
        }
        best
    }

    /// The guest acknowledged it: it is active, and what made it pending is consumed, but for a line that is still
    /// high.
    pub(crate) fn acknowledge(&mut self, vcpu: usize, id: u32) {
        let interrupt = self.get(vcpu, id);
        interrupt.active = true;
        interrupt.fired = false;
        interrupt.latch = interrupt.fresh;
        interrupt.fresh = false;
    }

    pub(crate) fn set_line(&mut self, vcpu: usize, id: u32, high: bool) -> bool {
        let interrupt = self.get(vcpu, id);
        let latched = high && !interrupt.line && interrupt.edge;
        interrupt.latch |= latched;
        interrupt.line = high;
        latched
    }

    /// Returns the targets whose SGI was latched.
    pub(crate) fn send_sgi(&mut self, source: usize, value: u64, group1_register: bool) -> Vec<usize> {
        let id = (value >> 24 & 15) as u32;
        let mut latched = vec![];
        for vcpu in 0..self.vcpus {
            let named = if value >> 40 & 1 == 1 {
                vcpu != source
            } else {
                let affinity = [value >> 16 & 0xFF, value >> 32 & 0xFF, value >> 48 & 0xFF, value >> 44 & 15];
                affinity == [0; 4] && vcpu < 16 && value >> vcpu & 1 == 1
            };
            let interrupt = self.get(vcpu, id);
            if named && (group1_register || !interrupt.group1) {
                interrupt.latch = true;
                latched.push(vcpu);
            }
        }
        latched
    }

    fn family(offset: u64) -> Option<(Family, u32)> {
        let family = match offset & !0x7F {
            0x080 => Family::Group,
            0x100 => Family::SetEnable,
            0x180 => Family::ClearEnable,
            0x200 => Family::SetPending,
            0x280 => Family::ClearPending,
            0x300 => Family::SetActive,
            0x380 => Family::ClearActive,
            _ => return None,
        };
        Some((family, (offset & 0x7F) as u32 * 8))
    }

    /// `frame` is `None` for the Distributor. Sizes in bytes.
    pub(crate) fn read(&mut self, frame: Option<usize>, offset: u64, size: u64) -> u64 {
        if !offset.is_multiple_of(size) || size == 2 {
            return 0;
        }
        match (frame, offset, size) {
            (None, 0x0, 4) => 0x50 | u64::from(self.group0) | u64::from(self.group1) << 1,
            (None, 0x4, 4) => 3 | 9 << 19,
            (None, 0x8, 4) | (Some(_), 0x4, 4) => 0x5500_0000,
            (_, 0xFFD0, 4) => 0x44,
            (_, 0xFFE0, 4) => 0x92 + u64::from(frame.is_some()),
            (_, 0xFFE4, 4) => 0xB4,
            (_, 0xFFE8, 4) => 0x3B,
            (_, 0xFFF0, 4) => 0x0D,
            (_, 0xFFF4, 4) => 0xF0,
            (_, 0xFFF8, 4) => 0x05,
            (_, 0xFFFC, 4) => 0xB1,
            (None, 0x6100..0x6400, 8) => self.get(0, (offset - 0x6000) as u32 / 8).router,
            (None, 0x6100..0x6400, 4) => {
                (self.get(0, (offset - 0x6000) as u32 / 8).router >> ((offset & 4) * 8)) & 0xFFFF_FFFF
            }
            (Some(vcpu), 0x0, 4) => u64::from(self.declines[vcpu][0]) << 24 | u64::from(self.declines[vcpu][1]) << 25,
            (Some(vcpu), 0x8, 8) => {
                (vcpu as u64) << 32 | (vcpu as u64) << 8 | 0x20 | u64::from(vcpu == self.vcpus - 1) << 4
            }
            (Some(vcpu), 0x8, 4) => (vcpu as u64) << 8 | 0x20 | u64::from(vcpu == self.vcpus - 1) << 4,
            (Some(vcpu), 0xC, 4) => vcpu as u64,
            (Some(vcpu), 0x14, 4) => u64::from(self.asleep[vcpu]) * 6,
            (None, _, _) => self.read_each(None, offset, size),
            (Some(_), 0x1_0000.., _) => self.read_each(frame, offset - 0x1_0000, size),
            _ => 0,
        }
    }

    /// Whether this frame shows interrupt `id`.
    fn shown(frame: Option<usize>, id: u32) -> bool {
        if frame.is_some() { id < 32 } else { (32..128).contains(&id) }
    }

    fn read_each(&mut self, frame: Option<usize>, offset: u64, size: u64) -> u64 {
        let vcpu = frame.unwrap_or(0);
        let mut value = 0;
        if let (0x400..0x800, 1 | 4) = (offset, size) {
            for byte in 0..size {
                let id = (offset - 0x400 + byte) as u32;
                if Self::shown(frame, id) {
                    value |= u64::from(self.get(vcpu, id).priority) << (8 * byte);
                }
            }
        } else if let (0xC00..0xD00, 4) = (offset, size) {
            for index in 0..16 {
                let id = (offset - 0xC00) as u32 * 4 + index;
                if Self::shown(frame, id) {
                    value |= u64::from(self.get(vcpu, id).edge) << (2 * index + 1);
                }
            }
        } else if let (Some((family, first)), 4) = (Self::family(offset), size) {
            for index in 0..32 {
                if !Self::shown(frame, first + index) {
                    continue;
                }
                let interrupt = self.get(vcpu, first + index);
                let bit = match family {
                    Family::Group => interrupt.group1,
                    Family::SetEnable | Family::ClearEnable => interrupt.enabled,
                    Family::SetPending | Family::ClearPending => interrupt.pending(),
                    Family::SetActive | Family::ClearActive => interrupt.active,
                };
                value |= u64::from(bit) << index;
            }
        }
        value
    }

    /// Returns the interrupts that this write latched, and the vCPU whose they are if private.
    pub(crate) fn write(&mut self, frame: Option<usize>, offset: u64, size: u64, value: u64) -> Vec<u32> {
        if !offset.is_multiple_of(size) || size == 2 {
            return vec![];
        }
        match (frame, offset, size) {
            (None, 0x0, 4) => (self.group0, self.group1) = (value & 1 != 0, value & 2 != 0),
            (None, 0x6100..0x6400, 4 | 8) => {
                let router = &mut self.get(0, (offset - 0x6000) as u32 / 8).router;
                let written = match (size, offset & 4) {
                    (8, _) => value,
                    (_, 0) => *router & 0xFFFF_FFFF_0000_0000 | value & 0xFFFF_FFFF,
                    _ => *router & 0xFFFF_FFFF | value << 32,
                };
                *router = written & 0xFF_80FF_FFFF;
            }
            (Some(vcpu), 0x0, 4) => self.declines[vcpu] = [value >> 24 & 1 != 0, value >> 25 & 1 != 0],
            (Some(vcpu), 0x14, 4) => self.asleep[vcpu] = value & 2 != 0,
            (None, _, _) => return self.write_each(None, offset, size, value),
            (Some(_), 0x1_0000.., _) => return self.write_each(frame, offset - 0x1_0000, size, value),
            _ => {}
        }
        vec![]
    }

    fn write_each(&mut self, frame: Option<usize>, offset: u64, size: u64, value: u64) -> Vec<u32> {
        let vcpu = frame.unwrap_or(0);
        let mut latched = vec![];
        if let (0x400..0x800, 1 | 4) = (offset, size) {
            for byte in 0..size {
                let id = (offset - 0x400 + byte) as u32;
                if Self::shown(frame, id) {
                    self.get(vcpu, id).priority = (value >> (8 * byte)) as u8 & self.priority_mask;
                }
            }
        } else if let (0xC00..0xD00, 4) = (offset, size) {
            for index in 0..16 {
                let id = (offset - 0xC00) as u32 * 4 + index;
                if Self::shown(frame, id) && id >= 16 {
                    self.get(vcpu, id).edge = value >> (2 * index + 1) & 1 != 0;
                }
            }
        } else if let (Some((family, first)), 4) = (Self::family(offset), size) {
            for index in 0..32 {
                let id = first + index;
                if !Self::shown(frame, id) {
                    continue;
                }
                let one = value >> index & 1 != 0;
                let interrupt = self.get(vcpu, id);
                match family {
                    Family::Group => interrupt.group1 = one,
                    Family::SetEnable => interrupt.enabled |= one,
                    Family::ClearEnable => interrupt.enabled &= !one,
                    Family::SetPending if one => {
                        interrupt.latch = true;
                        latched.push(id);
                    }
                    Family::ClearPending if one => (interrupt.latch, interrupt.fresh) = (false, false),
                    Family::SetActive => interrupt.active |= one,
                    Family::ClearActive => interrupt.active &= !one,
                    Family::SetPending | Family::ClearPending => {}
                }
            }
        }
        latched
    }
}
