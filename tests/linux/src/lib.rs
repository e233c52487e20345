//! What the tests' programs for Linux guests have in common: system calls, and lines that nobody tears. Their entry is that of the tools
//! for guests, which are static programs without a C library too: so they can be built with what builds the hypervisor.
//!
//! | program | what it does |
//! |---|---|
//! | `linux-bench` | is the only process of a Linux system, and times what kernels do all day |
//! | `linux-clocks` | watches clocks and timers under load |
//!
//! UNSAFETY: system calls, given only pointers to live memory; a page that processes share, which holds atomics alone; a counter that
//! every process may read.
#![no_std]
#![expect(unsafe_code, reason = "system calls are made of it")]

pub mod system;

use core::fmt;

/// A line that is printed as one.
#[derive(Debug)]
pub struct Line {
    text: [u8; 256],
    length: usize,
}

impl Line {
    /// An empty one.
    #[must_use]
    pub const fn new() -> Self {
        Self { text: [0; 256], length: 0 }
    }

    /// Prints it.
    pub fn print(&self) {
        system::File::OUTPUT.write(self.text.get(..self.length).unwrap_or_default());
    }
}

impl Default for Line {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.length + text.len();
        self.text.get_mut(self.length..end).ok_or(fmt::Error)?.copy_from_slice(text.as_bytes());
        self.length = end;
        Ok(())
    }
}

/// Prints a line with one system call, so that no other process's text comes in between.
#[macro_export]
macro_rules! line {
    ($($text:tt)*) => {{
        let mut line = $crate::Line::new();
        let _ = core::fmt::Write::write_fmt(&mut line, format_args!("{}\n", format_args!($($text)*)));
        line.print();
    }};
}
