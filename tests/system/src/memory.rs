//! The hypervisor's account of its memory, out of its statistics.

use anyhow::{Context, Result};

/// Who has how much of the host's memory, in KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// All that there is.
    pub total: u64,
    /// Nobody's.
    pub free: u64,
    /// Guests' RAM.
    pub guests: u64,
    /// Guests' stage 2 tables.
    pub tables: u64,
    /// The hypervisor's own.
    pub hypervisor: u64,
    /// How often the instruction caches were emptied for memory that changed hands; no amount of KiB.
    pub emptied: u64,
}

impl Memory {
    /// Reads the line `memory in KiB: N total, N free (N zeroed), N guests, ...`.
    ///
    /// # Errors
    /// If it is not there.
    pub fn read(statistics: &str) -> Result<Memory> {
        let line = statistics.lines().find_map(|line| line.split_once("memory in KiB: "));
        let (_, line) = line.with_context(|| format!("no line on memory in the statistics:\n{statistics}"))?;
        let amount = |what: &str| {
            let words: Vec<&str> = line.split([' ', ',', '(', ')']).filter(|word| !word.is_empty()).collect();
            let pair = words.windows(2).find(|pair| pair.last() == Some(&what));
            let number = pair.and_then(|pair| pair.first()?.parse().ok());
            number.with_context(|| format!("no {what} in: {line}"))
        };
        Ok(Memory {
            total: amount("total")?,
            free: amount("free")?,
            guests: amount("guests")?,
            tables: line
                .split(", ")
                .find_map(|part| part.strip_suffix(" their tables")?.parse().ok())
                .context("no tables")?,
            hypervisor: amount("hypervisor")?,
            emptied: statistics
                .lines()
                .find_map(|line| line.split_once("emptied for guests' memory: ")?.1.split_once(" time")?.0.parse().ok())
                .context("no count of emptied instruction caches")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_statistics_are_read() {
        let text = "web: started 2 times\nmemory in KiB: 1048576 total, 900 free (726 zeroed), 64 guests, 12 their tables, \
                    400 hypervisor, 33 reserved\ninstruction caches emptied for guests' memory: 7 times\n";
        let memory = Memory { total: 1_048_576, free: 900, guests: 64, tables: 12, hypervisor: 400, emptied: 7 };
        assert_eq!(Memory::read(text).ok(), Some(memory));
        assert!(Memory::read("nothing").is_err());
    }
}
