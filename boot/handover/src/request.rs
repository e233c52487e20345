//! What whoever starts the loader has written: words separated by blanks or line ends.
//!
//! `image=PATH` and `bundle=PATH` are for the loader: where on the volume that it was loaded from the hypervisor and its bundle are.
//! All other words are the hypervisor's command line, in their order. Paths may have `/` or `\`, as firmware writes it.

use alloc::string::String;

/// Where the hypervisor is, if nothing else is said.
pub const IMAGE: &str = "\\undercroft\\undercroft.img";
/// Where its bundle is.
pub const BUNDLE: &str = "\\undercroft\\site.bundle";
/// Where the words are, if firmware gives the loader none.
pub const ARGUMENTS: &str = "\\undercroft\\arguments.txt";

/// Words, understood.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// The hypervisor's path.
    pub image: String,
    /// The bundle's path.
    pub bundle: String,
    /// The hypervisor's command line.
    pub arguments: String,
}

/// A word for the loader without a path.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the word `{0}` names no file; write {0}\\folder\\file")]
pub struct NoPath(pub &'static str);

impl Request {
    /// Takes the words apart. Of two paths for one file the later holds.
    ///
    /// # Errors
    /// A path is empty.
    pub fn parse(text: &str) -> Result<Self, NoPath> {
        let mut request = Self { image: IMAGE.into(), bundle: BUNDLE.into(), arguments: String::new() };
        for word in text.split_whitespace() {
            if let Some(path) = word.strip_prefix("image=") {
                request.image = own_path("image=", path)?;
            } else if let Some(path) = word.strip_prefix("bundle=") {
                request.bundle = own_path("bundle=", path)?;
            } else {
                if !request.arguments.is_empty() {
                    request.arguments.push(' ');
                }
                request.arguments.push_str(word);
            }
        }
        Ok(request)
    }
}

fn own_path(word: &'static str, path: &str) -> Result<String, NoPath> {
    if path.is_empty() { Err(NoPath(word)) } else { Ok(path.replace('/', "\\")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_other_words_are_the_hypervisors() {
        let request =
            Request::parse("link=framed  bundle=/a/b.bundle\r\nall-off=poweroff image=\\c.img\n").expect("good");
        assert_eq!(request.image, "\\c.img");
        assert_eq!(request.bundle, "\\a\\b.bundle");
        assert_eq!(request.arguments, "link=framed all-off=poweroff");
    }

    #[test]
    fn nothing_is_enough_and_an_empty_path_is_too_little() {
        let request = Request::parse(" ").expect("good");
        assert_eq!((&*request.image, &*request.bundle, &*request.arguments), (IMAGE, BUNDLE, ""));
        assert_eq!(Request::parse("bundle="), Err(NoPath("bundle=")));
        assert_eq!(Request::parse("bundle=x image="), Err(NoPath("image=")));
    }
}
