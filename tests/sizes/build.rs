//! Links for a Cortex-M0 with the memory of an nRF51: QEMU's machine `microbit`.

use std::path::PathBuf;
use std::{env, fs};

const MEMORY: &str = "\
MEMORY {
    FLASH : ORIGIN = 0x00000000, LENGTH = 256K
    RAM : ORIGIN = 0x20000000, LENGTH = 16K
}
";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
        fs::write(out.join("memory.x"), MEMORY).expect("OUT_DIR can be written");
        println!("cargo:rustc-link-search={}", out.display());
        println!("cargo:rustc-link-arg-bins=-Tlink.x");
        println!("cargo:rustc-link-arg-bins=--nmagic");
        // Otherwise the line tables of dropped functions claim the first kilobytes.
        println!("cargo:rustc-link-arg-bins=-zdead-reloc-in-nonalloc=.debug_*=0xf0000000");
    }
}
