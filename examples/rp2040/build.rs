//! Linking for the RP2040, and the radio's parameters.

use std::path::PathBuf;
use std::{env, fs};

fn main() {
    println!("cargo:rerun-if-changed=memory.x");
    println!("cargo:rerun-if-changed=nvram.txt");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    fs::copy("memory.x", out.join("memory.x")).expect("OUT_DIR can be written");

    // The radio's format: each line ends with a zero byte, and the list with one more.
    let text = fs::read_to_string("nvram.txt").expect("nvram.txt can be read");
    let mut nvram = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        nvram.extend_from_slice(line.as_bytes());
        nvram.push(0);
    }
    nvram.push(0);
    fs::write(out.join("nvram.bin"), nvram).expect("OUT_DIR can be written");

    println!("cargo:rustc-link-search={}", out.display());
    println!("cargo:rustc-link-arg-bins=--nmagic");
    println!("cargo:rustc-link-arg-bins=-Tlink.x");
    println!("cargo:rustc-link-arg-bins=-Tlink-rp.x");
    if env::var_os("CARGO_FEATURE_DEFMT").is_some() {
        println!("cargo:rustc-link-arg-bins=-Tdefmt.x");
    }
}
