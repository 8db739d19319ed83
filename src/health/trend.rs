//! The trend of a series in time, by statistics that noise, spikes and single steps hardly move.
//!
//! Pure arithmetic over pairs of points: for a few hundred of them, not for thousands.

/// A value at a time, in seconds.
pub type Point = (f64, f64);

/// Where a series goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trend {
    /// Change a second: the median of the slopes between any two points (Theil and Sen).
    pub slope: f64,
    /// How one-way it is: the share of pairs that rise less that of those that fall (Kendall's
    /// tau). 1 where every point is above all earlier ones, 0 where it goes nowhere.
    pub tau: f64,
    /// Seconds from the first point to the last.
    pub span: f64,
    /// The median of the values.
    pub median: f64,
}

impl Trend {
    /// The trend of points in the order of time; `None` where no two of them are apart.
    pub fn of(points: &[Point]) -> Option<Self> {
        let ((first, _), (last, _)) = (points.first()?, points.last()?);
        let (mut slopes, mut direction) = (Vec::with_capacity(pairs(points.len())), 0_i64);
        let mut left = points;
        while let Some(((at, value), later)) = left.split_first() {
            for (later_at, later_value) in later {
                let (time, change) = (later_at - at, later_value - value);
                if time > 0.0 {
                    slopes.push(change / time);
                    direction += i64::from(change > 0.0) - i64::from(change < 0.0);
                }
            }
            left = later;
        }
        let count = slopes.len();
        Some(Trend {
            slope: median(&mut slopes)?,
            tau: direction as f64 / count as f64,
            span: last - first,
            median: median(&mut points.iter().map(|(_, value)| *value).collect::<Vec<_>>())?,
        })
    }

    /// What the whole series rose by, as the slope has it.
    pub fn growth(&self) -> f64 {
        self.slope * self.span
    }
}

/// The middle one of these values, which are put out of order; of an even number, the upper of the
/// two. `None` of none.
pub fn median(values: &mut [f64]) -> Option<f64> {
    if values.is_empty() {
        return None;
    }
    let middle = values.len() / 2;
    Some(*values.select_nth_unstable_by(middle, f64::total_cmp).1)
}

fn pairs(points: usize) -> usize {
    points.saturating_mul(points.saturating_sub(1)) / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(values: &[f64]) -> Vec<Point> {
        (0..values.len()).map(|index| index as f64 * 10.0).zip(values.iter().copied()).collect()
    }

    #[test]
    fn a_line_has_its_slope_whatever_one_point_says() {
        let mut points = series(&[0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        let line = Trend { slope: 2.0, tau: 1.0, span: 50.0, median: 60.0 };
        assert_eq!(Trend::of(&points), Some(line));
        assert_eq!(line.growth(), 100.0);
        points[2].1 = 1e9;
        let spiked = Trend::of(&points).unwrap();
        assert_eq!(spiked.slope, 2.0);
        assert!(spiked.tau < 1.0);
    }

    #[test]
    fn what_goes_nowhere_has_no_trend() {
        let flat = Trend::of(&series(&[5.0; 8])).unwrap();
        assert_eq!((flat.slope, flat.tau), (0.0, 0.0));
        let swing = Trend::of(&series(&[1.0, 2.0, 3.0, 3.0, 2.0, 1.0])).unwrap();
        assert_eq!((swing.slope, swing.tau), (0.0, 0.0));
        assert_eq!(Trend::of(&series(&[3.0, 2.0, 1.0])).unwrap().tau, -1.0);
    }

    #[test]
    fn less_than_two_points_have_none() {
        assert_eq!(Trend::of(&[]), None);
        assert_eq!(Trend::of(&[(1.0, 1.0)]), None);
        assert_eq!(Trend::of(&[(1.0, 1.0), (1.0, 2.0)]), None);
        assert_eq!(median(&mut []), None);
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), Some(2.0));
    }
}
