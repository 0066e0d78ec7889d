//! Owns the form in which a model hands over its forecast of a logarithm.
//! Promises finite entries and a half-width that never narrows with the horizon.
//! May be called by the files of this folder only.

/// A forecast of a logarithm, one entry per day ahead.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct LogForecast {
    /// Centre of the interval.
    pub(super) centre: Vec<f64>,
    /// Half of its width at the nominal coverage, >= 0 and never falling.
    pub(super) half_width: Vec<f64>,
}

impl LogForecast {
    /// `None` unless every entry is finite; rounding cannot make the width fall.
    pub(super) fn checked(centre: Vec<f64>, half_width: Vec<f64>) -> Option<Self> {
        if !centre.iter().chain(&half_width).all(|x| x.is_finite()) {
            return None;
        }
        let mut widest = 0.0_f64;
        let widen = |width| {
            widest = widest.max(width);
            widest
        };
        let half_width = half_width.into_iter().map(widen).collect();
        Some(Self { centre, half_width })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forecast_is_finite_and_never_narrows() {
        let forecast = LogForecast::checked(vec![1.0; 3], vec![0.3, 0.2, 0.4]).expect("finite");
        assert_eq!(forecast.half_width, [0.3, 0.3, 0.4]);
        assert_eq!(LogForecast::checked(vec![1.0; 3], vec![0.1, f64::NAN, 0.3]), None);
        assert_eq!(LogForecast::checked(vec![1.0; 3], vec![0.1, f64::INFINITY, 0.3]), None);
        assert_eq!(LogForecast::checked(vec![f64::NAN], vec![0.1]), None);
    }
}
