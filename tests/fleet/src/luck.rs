//! Chance that can be had again: everything random in these tests comes from one seed.

/// The variable that names a seed.
pub const SEED: &str = "ESO_FLEET_SEED";

/// The seed of this run: from the environment, else from the clock. It is printed, so that a failure can be had again.
pub fn seed() -> u64 {
    let told = std::env::var(SEED).ok().and_then(|text| text.parse().ok());
    let seed = told.unwrap_or_else(|| {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        since.map_or(1, |since| since.as_secs())
    });
    println!("{SEED}={seed}");
    seed
}

/// A stream of random numbers (splitmix64).
#[derive(Debug, Clone)]
pub struct Luck(u64);

impl Luck {
    /// The stream of this seed for this purpose.
    pub const fn of(seed: u64, purpose: u64) -> Self {
        Self(seed ^ purpose.wrapping_mul(0xA24B_AED4_963E_E407))
    }

    /// The next number.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`.
    pub const fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}
