-- Main galaxy sample of SDSS with its photometric redshifts (Beck et al. 2016), for CasJobs of SDSS, context DR17.
-- Written from memory of the public schema: neither run nor checked against SDSS's own SQL. Compare tables, columns and
-- cuts with CasJobs' schema browser first. Download the result as CSV, then:
--   msdata catalog match CATALOG mgs.csv OUT.parquet --on object_id=bestObjID --take ...
SELECT
  s.bestObjID, s.ra, s.dec, s.z AS z_spec,
  p.petroMag_r, p.extinction_r,
  f.z AS photoz_beck, f.zErr AS photoz_beck_err, f.photoErrorClass, f.nnCount
INTO mydb.mgs
FROM SpecObj AS s
  JOIN PhotoObjAll AS p ON p.objID = s.bestObjID
  LEFT JOIN Photoz AS f ON f.objID = s.bestObjID
WHERE s.class = 'GALAXY'
  AND s.zWarning = 0
  AND s.z > 0 AND s.z < 0.4
  AND p.petroMag_r - p.extinction_r <= 17.8
