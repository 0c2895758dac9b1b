//! Linking for the board mps2-an385.

use std::path::PathBuf;
use std::{env, fs};

/// The board has 4 MiB each. These sizes are those of an RP2040 board, so that firmware that does
/// not fit there does not link here either.
const MEMORY: &str = "\
MEMORY {
    FLASH : ORIGIN = 0x00000000, LENGTH = 2M
    RAM : ORIGIN = 0x20000000, LENGTH = 264K
}
";

/// Defaults of interrupt handlers, if the firmware has none.
const DEVICE: &str = "\
PROVIDE(TIMER0 = DefaultHandler);
PROVIDE(ETHERNET = DefaultHandler);
";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    fs::write(out.join("memory.x"), MEMORY).expect("OUT_DIR can be written");
    fs::write(out.join("device.x"), DEVICE).expect("OUT_DIR can be written");
    println!("cargo:rustc-link-search={}", out.display());
    println!("cargo:rustc-link-arg-bins=--nmagic");
    println!("cargo:rustc-link-arg-bins=-Tlink.x");
    if env::var_os("CARGO_FEATURE_DEFMT").is_some() {
        println!("cargo:rustc-link-arg-bins=-Tdefmt.x");
    }
    println!("cargo:rustc-check-cfg=cfg(armv6m)");
    if env::var("TARGET").is_ok_and(|target| target.starts_with("thumbv6m")) {
        println!("cargo:rustc-cfg=armv6m");
    }
}
