"use strict";
// Regions of an anomaly map, as adlight/detection/regions.py finds them: the page needs no request to move a threshold.

const NEIGHBOURS = [[-1, -1], [-1, 0], [-1, 1], [0, -1], [0, 1], [1, -1], [1, 0], [1, 1]];

// 8-connected regions where `inside(index)`: lists of pixels' indices
function connectedRegions(height, width, inside) {
  const seen = new Uint8Array(height * width), regions = [];
  for (let start = 0; start < seen.length; start++) {
    if (seen[start] || !inside(start)) continue;
    const region = [start];
    seen[start] = 1;
    for (let next = 0; next < region.length; next++) {
      const row = Math.floor(region[next] / width), column = region[next] % width;
      for (const [down, right] of NEIGHBOURS) {
        const y = row + down, x = column + right, index = y * width + x;
        if (y < 0 || x < 0 || y >= height || x >= width || seen[index] || !inside(index)) continue;
        seen[index] = 1;
        region.push(index);
      }
    }
    regions.push(region);
  }
  return regions;
}

// the pixels of a closing: gaps that no disk of a radius fits into without touching the mask are filled
function closeGaps(height, width, inside, radius) {
  const margin = Math.ceil(radius) + 1, rows = height + 2 * margin, columns = width + 2 * margin, disk = [];
  for (let y = -margin; y <= margin; y++) {
    for (let x = -margin; x <= margin; x++) if (y * y + x * x <= radius * radius) disk.push([y, x]);
  }
  const dilated = new Uint8Array(rows * columns), closed = new Uint8Array(height * width);
  for (let index = 0; index < closed.length; index++) {
    if (!inside(index)) continue;
    const row = Math.floor(index / width) + margin, column = (index % width) + margin;
    for (const [y, x] of disk) dilated[(row + y) * columns + column + x] = 1;
  }
  for (let index = 0; index < closed.length; index++) {
    const row = Math.floor(index / width) + margin, column = (index % width) + margin;
    const filled = dilated[row * columns + column] && disk.every(([y, x]) => dilated[(row + y) * columns + column + x]);
    closed[index] = inside(index) || filled ? 1 : 0;
  }
  return closed;
}

// regions above the pixel threshold that are large enough and whose peak is above what normal images show, and the
// strongest one, gaps within `closing` pixels filled; where no pixel is above it, the peak itself
function findRegions(values, height, width, threshold, regionThreshold, minPixels, closing) {
  const pixel = Math.fround(threshold), limit = regionThreshold === null ? -Infinity : Math.fround(regionThreshold);
  const isAbove = (index) => values[index] > pixel;
  const closed = closing > 0 ? closeGaps(height, width, isAbove, closing) : null;
  const regions = connectedRegions(height, width, closed ? (index) => closed[index] : isAbove);
  const peak = (region) => region.reduce((most, index) => Math.max(most, values[index]), -Infinity);
  if (!regions.length) {
    const most = values.reduce((one, other) => Math.max(one, other), -Infinity);
    return connectedRegions(height, width, (index) => values[index] >= most);
  }
  const peaks = regions.map(peak), strongest = peaks.indexOf(peaks.reduce((one, other) => Math.max(one, other)));
  return regions.filter((region, i) => i === strongest || (region.length >= minPixels && peaks[i] > limit));
}

// boxes (left, top, right, bottom) around regions of a map, in pixels of the image, rounded outwards, largest first
function boundingBoxes(regions, [height, width], [imageWidth, imageHeight]) {
  const boxes = regions.map((region) => {
    let [left, top, right, bottom] = [width, height, 0, 0];
    for (const index of region) {
      const row = Math.floor(index / width), column = index % width;
      [left, top] = [Math.min(left, column), Math.min(top, row)];
      [right, bottom] = [Math.max(right, column + 1), Math.max(bottom, row + 1)];
    }
    return [left, top, right, bottom];
  });
  boxes.sort((a, b) => (b[2] - b[0]) * (b[3] - b[1]) - (a[2] - a[0]) * (a[3] - a[1]));
  return boxes.map(([left, top, right, bottom]) => [
    Math.floor((left * imageWidth) / width), Math.floor((top * imageHeight) / height),
    Math.ceil((right * imageWidth) / width), Math.ceil((bottom * imageHeight) / height),
  ]);
}

function decodeBytes(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

function decodeFloats(text) {
  const bytes = decodeBytes(text), view = new DataView(bytes.buffer);
  return Float32Array.from({ length: bytes.length / 4 }, (_, i) => view.getFloat32(4 * i, true));
}
