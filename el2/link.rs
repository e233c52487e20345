//! How what ships and its checks are linked: as position-independent images, by the hypervisor's linker script. Their build scripts
//! include this.

/// Tells cargo so, for the program that is built.
pub(crate) fn link() {
    let folder = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    println!("cargo:rerun-if-changed=../link.rs");
    println!("cargo:rerun-if-changed=../hypervisor/image.ld");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("none") {
        return;
    }
    println!("cargo:rustc-link-arg-bins=-T{folder}/../hypervisor/image.ld");
    for argument in
        ["-pie", "--no-dynamic-linker", "-z", "notext", "--pack-dyn-relocs=relr", "--build-id=none", "--hash-style=gnu"]
    {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
}
