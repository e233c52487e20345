//! Files that are often mistaken for kernels, and what would be right.

/// A kind of file: bytes at an offset that only it has, and what to say.
type Kind = (usize, &'static [u8], &'static str);

/// The more telling ones first: a UKI is an EFI program, and so is an x86 kernel.
const KINDS: [Kind; 18] = [
    (0x202, b"HdrS", "a kernel for x86; the one for arm64 is wanted"),
    (0x24, &[0x18, 0x28, 0x6f, 0x01], "a kernel for 32-bit Arm (zImage); the one for arm64 is wanted"),
    (56, b"RSC\x05", "a kernel for RISC-V; the one for arm64 is wanted"),
    (0, b"07070", INITRD),
    (0, &[0xc7, 0x71], INITRD),
    (0, b"MZ", EFI),
    (
        0,
        &[0x27, 0x05, 0x19, 0x56],
        "an image for U-Boot (uImage); take the kernel out of it: dumpimage -p 0 -o Image FILE",
    ),
    (0, &[0xd0, 0x0d, 0xfe, 0xed], "a device tree, or an image for U-Boot (FIT); the plain Image is wanted"),
    (0, b"ANDROID!", "a boot image for Android; take the kernel out of it: unpack_bootimg --boot_img FILE"),
    (0, b"UCROFT\r\n", "a bundle of croft's; a bundle is given to QEMU or to the boot loader, not to a VM"),
    (0, b"!<arch>\n", "a package of Debian's; the kernel is in it as boot/vmlinuz-..."),
    (0, &[0xed, 0xab, 0xee, 0xdb], "an RPM package; the kernel is in it as lib/modules/.../vmlinuz"),
    (0, b"hsqs", "a file system (squashfs); the kernel's file is wanted"),
    (0x438, &[0x53, 0xef], "a file system (ext4); the kernel's file is wanted"),
    (0x8001, b"CD001", "a CD image; the kernel's file is wanted, which often is casper/vmlinuz or install.a64/vmlinuz"),
    (0, b"QFI\xfb", "a disk image (qcow2); the kernel's file is wanted"),
    (257, b"ustar", "a tar archive; the kernel's file is wanted"),
    (0, b"#!", "a script; the kernel's arch/arm64/boot/Image is wanted"),
];

const INITRD: &str = "an initial ramdisk (a cpio archive) and no kernel; are `kernel` and `initrd` confused?";
const EFI: &str = "an EFI program, which needs UEFI firmware; the plain Image, or a zboot kernel, is wanted: a unified kernel image has \
                   it in a section (objcopy -O binary --only-section=.linux FILE Image)";

/// What these contents are, if nobody can make anything of them as an initial ramdisk. Linux takes a file system too, and other kernels
/// that are an `Image` take tar archives.
pub(super) fn no_initrd(bytes: &[u8]) -> Option<&'static str> {
    let what = name(bytes)
        .filter(|what| *what != INITRD && !what.starts_with("a file system") && !what.starts_with("a tar"))?;
    what.split([';', ',']).next()
}

/// What these contents are.
pub(super) fn name(bytes: &[u8]) -> Option<&'static str> {
    let is = |&&(at, magic, _): &&Kind| bytes.get(at..).is_some_and(|rest| rest.starts_with(magic));
    KINDS.iter().find(is).map(|&(_, _, what)| what)
}
