//! The attacks, one file per kind of resource that they aim at.

mod credentials;
mod frames;
mod handshakes;
mod heads;
mod memory;

/// Declares the tests of a file. Each has an attack and what differs from the usual case.
macro_rules! cases {
    ($($(#[$attribute:meta])* $name:ident: $id:literal, $attack:path, [$($bound:ident: $limit:expr),*] $(, $field:ident: $value:expr)* ;)*) => {
        $(
            $(#[$attribute])*
            #[test]
            fn $name() {
                let case = $crate::report::Case {
                    $($field: $value,)*
                    bounds: $crate::report::Bounds {
                        $($bound: $limit,)*
                        ..$crate::report::Bounds::DEFAULT
                    },
                    ..$crate::report::Case::new($id, |attacker| Box::pin($attack(attacker)))
                };
                $crate::report::run(stringify!($name), &case);
            }
        )*
    };
}
use cases;

/// A configuration with the timeouts of the set-up and of heads cut short, so that the quick run does not wait for
/// them.
const SHORT: crate::stage::Conditions = crate::stage::Conditions {
    config: "timeouts: {handshake: 1s, requestHead: 1s}\n",
    open_files: None,
    memory: None,
    balancers: 0,
};
