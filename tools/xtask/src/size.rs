//! Checks that the image that ships has at most the size that SPECIFICATION.md promises, so that it does not grow
//! unnoticed.

use anyhow::{Context, Result, ensure};

/// The document with the bound.
pub(crate) const PAGE: &str = "SPECIFICATION.md";
/// How the row of its table begins that has it.
const ROW: &str = "| the image that ships |";

/// Checks an image of so many bytes against what `page` says.
///
/// # Errors
/// If it is larger, or the page does not say.
pub(crate) fn check(bytes: u64, page: &str) -> Result<()> {
    let bound = bound(page).with_context(|| format!("{PAGE} has no row \"{ROW} ... bytes\""))?;
    ensure!(
        bytes <= bound,
        "it has {bytes} bytes, and {PAGE} promises {bound} at most: look what has grown (`nm --size-sort`), or say there why more \
         is needed"
    );
    Ok(())
}

/// The number of bytes in the row's second cell.
fn bound(page: &str) -> Option<u64> {
    let row = page.lines().find_map(|line| line.strip_prefix(ROW))?;
    let (number, _) = row.split_once(" bytes")?;
    number.trim().replace(',', "").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn an_image_may_have_what_the_page_says() {
        let page = "| what | limit |\n| the image that ships | 700,000 bytes | as built |\n";
        check(700_000, page).unwrap();
        let told = check(700_001, page).unwrap_err().to_string();
        assert!(told.contains("700001 bytes") && told.contains("700000 at most"), "{told}");
    }

    #[test]
    fn a_page_that_says_nothing_is_no_permission() {
        for page in ["", "| the image that ships | as small as can be |\n", "| the image that ships | many bytes | |\n"]
        {
            assert!(check(1, page).is_err(), "{page}");
        }
    }

    #[test]
    fn our_own_page_says_it() {
        let page = include_str!("../../../SPECIFICATION.md");
        check(1, page).unwrap();
    }
}
