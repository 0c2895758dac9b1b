//! Compiles the examples of the book and the README: each page is the documentation of a module.

#[cfg(doctest)]
macro_rules! pages {
    ($($name:ident $path:literal)*) => {
        $(
            #[doc = include_str!(concat!("../../../", $path))]
            mod $name {}
        )*
    };
}

#[cfg(doctest)]
pages! {
    readme "README.md"
    library "docs/src/library.md"
}

#[test]
fn no_page_with_an_example_is_forgotten() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let mut dirs = vec![format!("{root}/docs/src")];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                dirs.push(path.display().to_string());
                continue;
            }
            let text = std::fs::read(&path).expect("a file");
            if !text.windows(7).any(|bytes| bytes == b"```rust") {
                continue;
            }
            let name = path.file_name().expect("a name").to_string_lossy();
            assert!(include_str!("lib.rs").contains(&format!("/{name}\"")), "{}", path.display());
        }
    }
}
