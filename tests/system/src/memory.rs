//! The hypervisor's account of its memory, and of its guests' code, from its statistics.

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

/// Which of a VM's pages are executable, by the statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code {
    /// How many it sees now.
    pub mapped: u64,
    /// How many of these are executable.
    pub executable: u64,
    /// How many became so, since the VM was made.
    pub made_executable: u64,
    /// How many blocks became one entry again.
    pub joined: u64,
}

impl Code {
    /// Reads the line `  code: POLICY, N of N pages executable; made so N, ..., joined N` of the VM `name`.
    ///
    /// # Errors
    /// If it is not there.
    pub fn read(statistics: &str, name: &str) -> Result<Code> {
        let mut lines = statistics.lines().skip_while(|line| !line.starts_with(&format!("{name}: ")));
        let line = lines.find_map(|line| line.strip_prefix("  code: "));
        let line = line.with_context(|| format!("no line on the code of {name} in the statistics:\n{statistics}"))?;
        let mut numbers = line.split([' ', ',']).filter_map(|word| word.parse().ok());
        let mut next = || numbers.next().with_context(|| format!("not enough numbers in: {line}"));
        let (executable, mapped, made_executable) = (next()?, next()?, next()?);
        let joined = numbers.next_back().with_context(|| format!("no blocks in: {line}"))?;
        Ok(Code { mapped, executable, made_executable, joined })
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

    #[test]
    fn a_vms_code_is_found() {
        let text = "web: started 1 times\n  code: strict, 3 of 512 pages executable; made so 4, taken back 1\n\
                    db: started 2 times\n  code: on-demand, 30 of 1024 pages executable; made so 40, taken back 10, blocks split 3, joined 2\n";
        let code = Code { mapped: 1024, executable: 30, made_executable: 40, joined: 2 };
        assert_eq!(Code::read(text, "db").ok(), Some(code));
        assert!(Code::read(text, "nobody").is_err());
    }
}
