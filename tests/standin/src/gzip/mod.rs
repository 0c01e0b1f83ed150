//! Gzip streams as servers write them, for a proxy that must know where a member ends.

/// The members of a compressed watch, made by Go's compress/gzip as kube-apiserver uses it. `members.go` beside this
/// file wrote them. The third holds bytes that almost look like the end of a member.
///
/// # Panics
///
/// When the file is damaged.
#[must_use]
pub fn members() -> Vec<&'static [u8]> {
    let mut rest: &[u8] = include_bytes!("members.bin");
    let mut members = Vec::new();
    while let Some((length, after)) = rest.split_first_chunk() {
        let length = u32::from_be_bytes(*length) as usize;
        let (member, left) = after.split_at(length);
        members.push(member);
        rest = left;
    }
    assert!(rest.is_empty(), "members.bin ends inside a length");
    members
}

/// One member with one event, written by zlib 1.3 with `Z_SYNC_FLUSH` and then `Z_FINISH`. Its last block has fixed
/// codes.
pub const MEMBER_OF_ZLIB: &[u8] = &[
    0x1f, 0x8b, 0x08, 0x00, 0x00, 0x00, 0x00, 0x00, 0x04, 0x03, 0xaa, 0x56, 0x2a, 0xa9, 0x2c, 0x48,
    0x55, 0xb2, 0x52, 0x72, 0x74, 0x71, 0x71, 0x75, 0x51, 0xaa, 0xe5, 0x02, 0x00, 0x00, 0x00, 0xff,
    0xff, 0x03, 0x00, 0x45, 0xd0, 0x26, 0x43, 0x11, 0x00, 0x00, 0x00,
];
