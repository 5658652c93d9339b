//! Handwritten digits, read pixel by pixel: sequences of 64 brightnesses.

use std::path::Path;

use tilewright_examples::Splitmix;

/// Pixels of an image.
pub const PIXELS: usize = 64;

/// Images with their digits.
#[derive(Default)]
pub struct Images {
    pub pixels: Vec<f32>,
    pub digits: Vec<i32>,
}

impl Images {
    pub fn len(&self) -> usize {
        self.digits.len()
    }

    fn push(&mut self, pixels: &[f32], digit: i32) {
        self.pixels.extend(pixels);
        self.digits.push(digit);
    }

    /// Images drawn at random, for one step.
    pub fn batch(&self, size: usize, seed: u64, step: usize) -> Images {
        let mut random = Splitmix(seed ^ (step as u64 + 1).wrapping_mul(0xD134_2543_DE82_EF95));
        let mut batch = Images::default();
        for _ in 0..size {
            let i = random.below(self.len());
            batch.push(&self.pixels[i * PIXELS..(i + 1) * PIXELS], self.digits[i]);
        }
        batch
    }
}

/// Reads the file that `fetch_digits.py` writes, and splits it, shuffled by the seed: four fifths to learn from, one to
/// test on.
pub fn read(path: &Path, seed: u64) -> Result<(Images, Images), String> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        let fetch = format!("python3 examples/state_space/fetch_digits.py {}", path.display());
        format!("{}: {error}\nfetch the digits first: {fetch}", path.display())
    })?;
    let mut images = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let numbers: Result<Vec<f32>, _> = line.split(',').map(|field| field.trim().parse::<f32>()).collect();
        match numbers {
            Ok(numbers) if numbers.len() == PIXELS + 1 && (0.0..10.0).contains(&numbers[PIXELS]) => {
                images.push(numbers)
            }
            _ => return Err(format!("{}:{}: 64 pixels and a digit expected", path.display(), number + 1)),
        }
    }
    if images.len() < 10 {
        return Err(format!("{}: at least 10 images expected, {} found", path.display(), images.len()));
    }
    let mut random = Splitmix(seed);
    for i in (1..images.len()).rev() {
        images.swap(i, random.below(i + 1));
    }
    let (mut training, mut test) = (Images::default(), Images::default());
    for (i, numbers) in images.iter().enumerate() {
        let pixels: Vec<f32> = numbers[..PIXELS].iter().map(|&pixel| pixel / 8.0 - 1.0).collect();
        let part = if i % 5 == 4 { &mut test } else { &mut training };
        part.push(&pixels, numbers[PIXELS] as i32);
    }
    Ok((training, test))
}
