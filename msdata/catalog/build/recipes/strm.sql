-- Photometric redshifts of WISE-PS1-STRM (Beck et al. 2022, MNRAS 515, 4711) for your positions, for CasJobs of MAST.
-- Written from memory of the public schema: neither run nor checked against MAST's own SQL. Compare contexts, tables,
-- functions and columns with CasJobs' schema browser first. Upload the catalog's sample_id, ra and dec as mydb.positions, then:
--   msdata catalog match CATALOG strm.csv OUT.parquet --within-arcsec 1.5 --positions ra,dec=raMean,decMean --take ...
SELECT
  q.sample_id, c.objID, c.raMean, c.decMean, c.class,
  c.z_phot0 AS photoz_strm, c.z_photErr AS photoz_strm_err, c.extrapolation_Photoz
INTO mydb.strm
FROM mydb.positions AS q
  CROSS APPLY PanSTARRS_DR2.dbo.fGetNearbyObjEq(q.ra, q.dec, 1.5 / 60) AS n
  JOIN HLSP_WISE_PS1_STRM.dbo.catalogRecordRowStore AS c ON c.objID = n.objID
