//! The payloads: bare-metal programs of one theme each (`src/bin/`), run as guests of Undercroft and, for reference, on the bare
//! emulated machine. See `payload-rt` for how they start and how they report.
#![no_std]
