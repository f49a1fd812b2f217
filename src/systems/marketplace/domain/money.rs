//! Amounts in minor units.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An amount of a currency.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Money {
    /// In the currency's smallest unit: 4500 EUR is 45 euros.
    #[schemars(example = 4500)]
    pub amount_minor: i64,
    /// ISO 4217.
    #[schemars(regex(pattern = "^[A-Z]{3}$"), example = &"EUR")]
    pub currency: String,
}

impl Money {
    pub fn new(amount_minor: i64, currency: &str) -> Self {
        Self { amount_minor, currency: currency.into() }
    }
}

impl std::fmt::Display for Money {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digits = minor_digits(&self.currency);
        let (one, minor) = (10_u64.pow(digits), self.amount_minor.unsigned_abs());
        let sign = if self.amount_minor < 0 { "-" } else { "" };
        write!(f, "{sign}{}", minor / one)?;
        if digits > 0 {
            write!(f, ".{:0width$}", minor % one, width = digits as usize)?;
        }
        write!(f, " {}", self.currency)
    }
}

/// How many decimal digits a currency's minor unit has, by ISO 4217: 60 euros are 6,000, 60 yen are 60.
pub fn minor_digits(currency: &str) -> u32 {
    match currency {
        "BIF" | "CLP" | "DJF" | "GNF" | "ISK" | "JPY" | "KMF" | "KRW" | "PYG" | "RWF" | "UGX"
        | "VND" | "VUV" | "XAF" | "XOF" | "XPF" => 0,
        "BHD" | "IQD" | "JOD" | "KWD" | "LYD" | "OMR" | "TND" => 3,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_the_digits_of_their_currency() {
        for (minor, currency, shown) in [
            (6_050, "EUR", "60.50 EUR"),
            (5_000, "JPY", "5000 JPY"),
            (1_250, "KWD", "1.250 KWD"),
            (-5, "EUR", "-0.05 EUR"),
            (i64::MIN, "JPY", "-9223372036854775808 JPY"),
        ] {
            assert_eq!(Money::new(minor, currency).to_string(), shown);
        }
    }
}
