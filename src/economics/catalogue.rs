//! Owns the matching of model names against the catalogue of miner models.
//! Promises one key for every spelling of a model and different keys for different models of the catalogue.
//! May be called by every module.

/// A maker's names, and the brands it sells under. Longer names stand first where one begins the other.
struct Maker {
    names: &'static [&'static str],
    brands: &'static [&'static str],
}

const MAKERS: [Maker; 8] = [
    Maker { names: &["bitmain"], brands: &["antminer"] },
    Maker { names: &["microbt"], brands: &["whatsminer"] },
    Maker { names: &["canaan"], brands: &["avalonminer", "avalon"] },
    Maker { names: &["bitdeer"], brands: &["sealminer"] },
    Maker { names: &["auradine"], brands: &["teraflux"] },
    Maker { names: &["proto (block)", "block"], brands: &["proto"] },
    Maker { names: &["halong mining", "halong"], brands: &["dragonmint"] },
    Maker { names: &["innosilicon"], brands: &["innosilicon"] },
];

/// The key of a model's name: lower case, single spaces, without the maker's name and without its brand.
/// `"S21"`, `"antminer  s21"` and `"Bitmain Antminer S21"` give `"s21"`. What distinguishes models ("+", "XP", "Hyd",
/// a "235T" variant) stays. A brand is dropped after its own maker only, and a name that is nothing else stays as it is.
#[must_use]
pub fn normalise(name: &str) -> String {
    let words: Vec<_> = name.split_whitespace().collect();
    let name = words.join(" ").to_lowercase();
    let model = MAKERS
        .iter()
        .find_map(|maker| {
            let unmade = without(&name, maker.names);
            let unbranded = without(unmade.unwrap_or(&name), maker.brands);
            unbranded.or(unmade)
        })
        .unwrap_or(&name);
    model.to_owned()
}

/// The rest of `name` after the first of `prefixes` that begins it as whole words.
fn without<'a>(name: &'a str, prefixes: &[&str]) -> Option<&'a str> {
    prefixes.iter().find_map(|prefix| name.strip_prefix(prefix)?.strip_prefix(' '))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    const CATALOGUE: &str = include_str!("../../migrations/data/miner_models.csv");

    /// Name and manufacturer of every row; the file quotes nothing.
    fn models() -> impl Iterator<Item = (&'static str, &'static str)> {
        CATALOGUE.lines().skip(1).map(|row| {
            let mut columns = row.split(',');
            let name = columns.next().expect("a name");
            (name, columns.next().expect("a manufacturer"))
        })
    }

    #[test]
    fn spellings_of_a_model_have_one_key() {
        for name in [
            "S21",
            "s21",
            "antminer s21",
            "Antminer  S21",
            " ANTMINER\tS21 ",
            "Bitmain S21",
            "Bitmain Antminer S21",
        ] {
            assert_eq!(normalise(name), "s21", "{name}");
        }
        assert_eq!(normalise("Canaan AvalonMiner A1566"), "a1566");
        assert_eq!(normalise("Halong Mining DragonMint T1"), "t1");
        assert_eq!(normalise("Innosilicon T3+"), "t3+");
        assert_eq!(normalise("Block Proto Rig"), normalise("Proto Rig"));
    }

    #[test]
    fn what_is_not_a_prefix_stays() {
        for (name, key) in [
            ("", ""),
            ("  ", ""),
            ("Antminer", "antminer"),
            ("Antminers 5", "antminers 5"),
            ("My Antminer S21", "my antminer s21"),
            ("Bitmain Whatsminer M60", "whatsminer m60"),
            ("S21 XP+ Hyd", "s21 xp+ hyd"),
            ("ÄÖ  ẞ", "äö ß"),
        ] {
            assert_eq!(normalise(name), key, "{name:?}");
        }
    }

    #[test]
    fn models_of_the_catalogue_never_collide() {
        let mut names = HashMap::new();
        for (name, _) in models() {
            let key = normalise(name);
            assert!(!key.is_empty(), "{name}");
            let other = names.insert(key, name);
            assert_eq!(other, None, "{name}");
        }
        assert_eq!(names.len(), 126);
    }

    #[test]
    fn the_manufacturer_is_optional_for_every_model() {
        for (name, manufacturer) in models() {
            let key = normalise(name);
            assert_eq!(normalise(&format!("{manufacturer} {name}")), key);
            assert_eq!(normalise(&key), key, "a key is its own key");
            assert_eq!(normalise(&name.to_uppercase()), key);
        }
    }
}
